"""The handlers on small engines: what they do to loss, gradients, weights and files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import IgniteMetricHandler, LrScheduleHandler, ValidationHandler, from_engine
from monai.metrics import DiceMetric
from monai.transforms import Compose, RandGaussianNoised
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from scripts.io import weights
from scripts.runtime.errors import UserError
from scripts.training import handlers


class _Scores:
    """A validation metric that goes through given values, one a validation."""

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)

    def attach(self, engine: Any, name: str) -> None:
        def score(engine: Any) -> None:
            engine.state.metrics[name] = next(self.values)

        engine.add_event_handler(Events.EPOCH_COMPLETED, score)


def _data(count: int = 4) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randn(2, 8, 8, 8, generator=generator),
            "label": (torch.rand(1, 8, 8, 8, generator=generator) > 0.5).float(),
        }
        for _ in range(count)
    ]


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 3, 3, padding=1), nn.Dropout(0.3), nn.ReLU(), nn.Conv3d(3, 1, 1))


def _validator(network: nn.Module, scores: list[float] | None, data: list | None = None) -> SupervisedEvaluator:
    metric = (
        _Scores(scores)
        if scores is not None
        else IgniteMetricHandler(DiceMetric(ignore_empty=False), output_transform=from_engine(["pred", "label"]))
    )
    return SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(_data(1) if data is None else data), batch_size=1),
        network=network,
        key_val_metric={"val_mean_dice": metric},
    )


def _trainer(network: nn.Module, epochs: int, train_handlers: list, random: bool = False) -> SupervisedTrainer:
    transform = Compose([RandGaussianNoised("image", prob=1.0, std=0.5)]) if random else None
    return SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=DataLoader(Dataset(_data(), transform), batch_size=2, shuffle=True),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-2),
        loss_function=nn.BCEWithLogitsLoss(),
        train_handlers=train_handlers,
    )


def test_l1_penalty_is_the_weighted_sum_of_absolute_weights() -> None:
    network = _network()
    network[0].bias.requires_grad_(False)
    expected = 0.01 * sum(p.detach().abs().sum() for p in network.parameters() if p.requires_grad)
    outputs: list[dict] = []
    trainer = _trainer(network, 1, [handlers.L1Penalty(network, 0.01)])
    trainer.add_event_handler(handlers.IterationEvents.LOSS_COMPLETED, lambda e: outputs.append(dict(e.state.output)))
    trainer.run()
    first = outputs[0]
    torch.testing.assert_close(first["l1_penalty"], expected)
    plain = nn.functional.binary_cross_entropy_with_logits(first["pred"], first["label"])
    torch.testing.assert_close(first["loss"], plain + expected)


def test_l1_penalty_adds_its_sign_to_the_gradient() -> None:
    gradients = []
    for weight in (0.0, 0.5):
        network = _network().eval()
        trainer = _trainer(network, 1, [handlers.EpochSeed(0), handlers.L1Penalty(network, weight)])
        trainer.add_event_handler(
            handlers.IterationEvents.BACKWARD_COMPLETED,
            lambda e, n=network: gradients.append(n[3].weight.grad.clone()),
        )
        trainer.run()
    steps = len(gradients) // 2  # the first step of each run stands on the same weights and data
    torch.testing.assert_close(gradients[steps] - gradients[0], 0.5 * _network()[3].weight.detach().sign())


@pytest.mark.parametrize("max_norm", [1e-3, 1e6])
def test_clipping_bounds_the_joint_norm(max_norm: float) -> None:
    network, norms = _network(), []
    trainer = _trainer(network, 1, [handlers.GradientClipping(network, max_norm)])

    def record(engine: SupervisedTrainer) -> None:
        after = torch.sqrt(sum((p.grad**2).sum() for p in network.parameters()))
        norms.append((float(engine.state.output["grad_norm"]), float(after)))

    trainer.add_event_handler(handlers.IterationEvents.BACKWARD_COMPLETED, record)
    trainer.run()
    for before, after in norms:
        assert after == pytest.approx(min(before, max_norm), rel=1e-3)


def test_clipping_unscales_the_gradients_of_mixed_precision_first() -> None:
    class Scaler:
        """Stands for a CUDA GradScaler at a scale of 1024, which is what there is to unscale."""

        def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad /= 1024

    network = _network()
    trainer = _trainer(network, 1, [])
    trainer.amp, trainer.scaler = True, Scaler()
    for p in network.parameters():
        p.grad = torch.full_like(p, 1024 * 0.001)
    trainer.state.output = {}
    handlers.GradientClipping(network, max_norm=1.0)(trainer)
    # 0.001 each: the true norm is far below 1, so nothing is clipped; a clip of the scaled ones would have shrunk them
    torch.testing.assert_close(network[0].weight.grad, torch.full_like(network[0].weight, 0.001))


def _weights_after(epochs: int, seed: int, **extra: Any) -> torch.Tensor:
    network = _network()
    trainer = _trainer(network, epochs, [handlers.EpochSeed(seed), *extra.get("more", [])], random=True)
    trainer.run()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_epoch_seed_makes_runs_repeatable_whatever_consumes_random_numbers() -> None:
    class Consumer:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: torch.rand(7))

    reference = _weights_after(3, seed=1)
    assert torch.equal(_weights_after(3, seed=1, more=[Consumer()]), reference)
    assert not torch.equal(_weights_after(3, seed=2), reference)


@pytest.mark.parametrize(
    ("scores", "saved_at", "stopped_at"), [([0.1, 0.5, 0.4, 0.5, 0.3, 0.6], 2, 5), ([0.3, 0.2, 0.1, 0.0], 1, 4)]
)
def test_best_model_and_early_stopping(tmp_path: Path, scores: list[float], saved_at: int, stopped_at: int) -> None:
    network, seen = _network(), {}
    validator = _validator(network, scores)
    path = tmp_path / "deep" / "model.pt"
    trainer = _trainer(
        network,
        20,
        [
            ValidationHandler(1, validator),
            handlers.BestModelSaver(network, str(path), validator),
            handlers.PatienceHandler(validator, patience=3),
        ],
    )
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda e: seen.__setitem__(e.state.epoch, {k: v.clone() for k, v in network.state_dict().items()}),
    )
    trainer.run()
    assert trainer.state.epoch == stopped_at
    content = torch.load(path, weights_only=True)
    assert list(content) == ["model"]
    for name, value in content["model"].items():
        assert torch.equal(value, seen[saved_at][name])
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]


def test_early_stopping_counts_epochs_not_validations() -> None:
    network = _network()
    validator = _validator(network, [0.5, 0.4, 0.3, 0.2, 0.1])
    trainer = _trainer(network, 20, [ValidationHandler(2, validator), handlers.PatienceHandler(validator, patience=4)])
    trainer.run()
    assert trainer.state.epoch == 6  # the best was epoch 2


@pytest.mark.parametrize(("interval", "epochs", "validated"), [(3, 7, [3, 6, 7]), (3, 6, [3, 6]), (9, 2, [2])])
def test_the_last_epoch_is_validated_once(interval: int, epochs: int, validated: list[int]) -> None:
    network = _network()
    validator = _validator(network, [0.1] * epochs)
    last = handlers.LastValidation(validator, interval)
    trainer = _trainer(network, epochs, [ValidationHandler(interval, validator), last])
    seen: list[int] = []
    validator.add_event_handler(Events.STARTED, lambda: seen.append(trainer.state.epoch))
    trainer.run()
    assert seen == validated


def test_last_weights_are_saved_without_a_validation(tmp_path: Path) -> None:
    network = _network()
    validator = _validator(network, None, data=[])
    trainer = _trainer(
        network,
        2,
        [
            ValidationHandler(1, validator),
            handlers.BestModelSaver(network, str(tmp_path / "model.pt"), validator),
            handlers.PatienceHandler(validator, patience=1),
        ],
    )
    trainer.run()
    assert trainer.state.epoch == 2
    saved = torch.load(tmp_path / "model.pt", weights_only=True)["model"]
    assert all(torch.equal(saved[k], v) for k, v in network.state_dict().items())


class _Killed(Exception):
    pass


def _resumable(folder: Path, epochs: int, resume: bool, kill_in_epoch: int | None = None) -> nn.Module:
    """A training with everything a run has, optionally killed in the middle of an epoch."""
    network = _network()
    validator = _validator(network, None)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=DataLoader(
            Dataset(_data(), Compose([RandGaussianNoised("image", prob=1.0, std=0.5)])), batch_size=2, shuffle=True
        ),
        network=network,
        optimizer=optimizer,
        loss_function=nn.BCEWithLogitsLoss(),
        train_handlers=[
            handlers.EpochSeed(5),
            LrScheduleHandler(scheduler, print_lr=False),
            ValidationHandler(1, validator),
            handlers.BestModelSaver(network, str(folder / "model.pt"), validator),
            handlers.PatienceHandler(validator, patience=4),
            handlers.Resume(
                str(folder / "state.pt"),
                {"network": network, "optimizer": optimizer, "lr_scheduler": scheduler},
                validator,
                resume,
            ),
        ],
    )
    if kill_in_epoch is not None:

        def kill(engine: SupervisedTrainer) -> None:
            if engine.state.epoch == kill_in_epoch:
                raise _Killed

        trainer.add_event_handler(Events.ITERATION_COMPLETED, kill)
    trainer.run()
    return network


@pytest.mark.parametrize("kill_in_epoch", [1, 2, 4])
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path, kill_in_epoch: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    reference = _resumable(whole, 6, resume=True).state_dict()
    with pytest.raises(_Killed):
        _resumable(parts, 6, resume=True, kill_in_epoch=kill_in_epoch)
    resumed = _resumable(parts, 6, resume=True).state_dict()
    assert all(torch.equal(resumed[k], v) for k, v in reference.items())
    best = [torch.load(folder / "model.pt", weights_only=True)["model"] for folder in (whole, parts)]
    assert all(torch.equal(best[0][k], v) for k, v in best[1].items())


def _rates(path: Path, epochs: int, schedule: Callable[[Optimizer], LRScheduler]) -> list[float]:
    """The learning rates of a training's epochs, as the schedule's own steps give them; goes on from ``path``."""
    network = _network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    scheduler = schedule(optimizer)
    validator = _validator(network, None)
    rates: list[float] = []
    objects = {"network": network, "optimizer": optimizer, "lr_scheduler": scheduler}
    trainer = _trainer(network, epochs, [
        LrScheduleHandler(scheduler, print_lr=False), handlers.Resume(str(path), objects, validator, resume=True),
    ])  # fmt: skip
    trainer.optimizer = optimizer
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.run()
    return rates


@pytest.mark.parametrize(
    "schedule",
    [
        lambda epochs: lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(optimizer, epochs, 0.9),
        lambda epochs: lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
        lambda epochs: lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8),
    ],
)
def test_more_epochs_follow_the_learning_rates_of_so_many(
    schedule: Callable[[int], Callable[[Optimizer], LRScheduler]], tmp_path: Path
) -> None:
    """strong.yaml's was 0 from the epoch on that a finished training had ended with."""
    whole = _rates(tmp_path / "whole.pt", 4, schedule(4))
    first = _rates(tmp_path / "parts.pt", 2, schedule(2))
    rest = _rates(tmp_path / "parts.pt", 4, schedule(4))
    assert len(first) == len(rest) == 2
    assert rest == pytest.approx(whole[2:])
    assert min(rest) > 0


def test_what_the_config_says_of_the_optimizer_counts_when_a_run_goes_on(tmp_path: Path) -> None:
    """PyTorch would bring the saved weight decay back; moments and learning rate are those of the run."""
    network = _network()

    def train(epochs: int, decay: float, lr: float) -> torch.optim.AdamW:
        optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=decay)
        trainer = _trainer(network, epochs, [
            handlers.Resume(str(tmp_path / "state.pt"), {"optimizer": optimizer}, _validator(network, None), "force"),
        ])  # fmt: skip
        trainer.optimizer = optimizer
        trainer.run()
        return optimizer

    before = train(1, decay=0.01, lr=0.002)
    after = train(2, decay=0.5, lr=0.002)
    assert after.param_groups[0]["weight_decay"] == 0.5
    assert after.param_groups[0]["lr"] == 0.002
    steps = [int(optimizer.state_dict()["state"][0]["step"]) for optimizer in (before, after)]
    assert steps[1] == 2 * steps[0]


def test_a_schedule_that_cannot_be_stretched_is_refused(tmp_path: Path) -> None:
    def schedule(steps: int) -> Callable[[Optimizer], LRScheduler]:
        return lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)

    _rates(tmp_path / "state.pt", 2, schedule(5))
    assert len(_rates(tmp_path / "state.pt", 3, schedule(5))) == 1
    with pytest.raises(UserError) as caught:
        _rates(tmp_path / "state.pt", 8, schedule(9))
    message = str(caught.value)
    assert "OneCycleLR (total_steps 5 in the run, 9 here)" in message
    assert f"--init_weights {tmp_path / 'model.pt'}" in message


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    reference = _resumable(tmp_path, 3, resume=True).state_dict()
    again = _resumable(tmp_path, 3, resume=True).state_dict()
    assert all(torch.equal(again[k], v) for k, v in reference.items())


def test_without_resume_the_run_starts_afresh(tmp_path: Path) -> None:
    first = _resumable(tmp_path, 2, resume=False).state_dict()
    again = _resumable(tmp_path, 2, resume=False).state_dict()
    assert all(torch.equal(again[k], v) for k, v in first.items())


def _load(path: Path, network: nn.Module) -> None:
    handlers.WeightsLoader(str(path), {"model": network})(_validator(network, [0.0]))


def test_checkpoint_loader_restores_the_weights(tmp_path: Path) -> None:
    network = _network()
    for content in ({"model": network.state_dict()}, network.state_dict()):
        torch.save(content, tmp_path / "model.pt")
        other = _network()
        nn.init.zeros_(other[0].weight)
        _load(tmp_path / "model.pt", other)
        assert torch.equal(other[0].weight, network[0].weight)


def test_checkpoint_loader_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint at .*absent.pt"):
        _load(tmp_path / "absent.pt", _network())
    (tmp_path / "text.pt").write_text("not a checkpoint")
    with pytest.raises(UserError, match=r"text.pt is not a checkpoint"):
        _load(tmp_path / "text.pt", _network())
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list"):
        _load(tmp_path / "list.pt", _network())
    weights = _network().state_dict()
    weights["0.weight"] = weights["0.weight"][:2]
    weights["extra"] = weights.pop("3.bias")
    torch.save({"model": weights}, tmp_path / "other.pt")
    with pytest.raises(
        ValueError, match=r"(?s)missing: 3.bias.*not in the network: extra.*0.weight: \(2, 2, 3, 3, 3\)"
    ):
        _load(tmp_path / "other.pt", _network())


def test_atomic_save_keeps_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    weights.save_atomically({"a": torch.ones(1)}, path)
    with pytest.raises(Exception, match="pickle"):
        weights.save_atomically({"a": lambda: None}, path)
    assert torch.load(path, weights_only=True)["a"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
