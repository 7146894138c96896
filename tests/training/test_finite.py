"""Numbers that are none: noticed in their step, never saved, never loaded, never a mask."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from torch import nn

from scripts.inference.inferers import EnsembleInferer
from scripts.io import weights
from scripts.runtime.errors import UserError
from scripts.runtime.finite import not_finite
from scripts.training.finite_steps import FiniteSteps
from scripts.training.handlers import GradientClipping, L1Penalty

BAD = [float("nan"), float("inf"), -float("inf")]


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(2, 3, 3, padding=1), nn.BatchNorm3d(3), nn.ReLU(), nn.Conv3d(3, 1, 1))


def _trainer(
    network: nn.Module, on_nonfinite: str = "skip", spoil: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    bad_cases: dict[int, float] | None = None, clip_norm: float = 1.0, learning_rate: float = 1e-2, cases: int = 8,
    read_every: int = 1,
) -> SupervisedTrainer:  # fmt: skip
    """Eight steps of one case each; some of the cases, or of the losses, are spoiled."""
    generator = torch.Generator().manual_seed(0)
    data = []
    for number in range(cases):
        image = torch.randn(2, 6, 6, 6, generator=generator)
        if number in (bad_cases or {}):
            image[0, 3, 3, 3] = bad_cases[number]  # type: ignore[index]
        data.append({"image": image, "label": (image[:1] > 0).float(), "case": f"case_{number}"})

    class Loss(nn.Module):
        step = 0

        def __init__(self) -> None:
            super().__init__()
            self.region, self.boundary = nn.BCEWithLogitsLoss(), nn.MSELoss()

        def forward(self, pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            self.step += 1
            loss = self.region(pred, label) + 0.1 * self.boundary(pred, label)
            return spoil(self.step, loss) if spoil else loss

    return SupervisedTrainer(
        device="cpu", max_epochs=1, train_data_loader=DataLoader(Dataset(data), batch_size=1), network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=learning_rate), loss_function=Loss(),
        train_handlers=[L1Penalty(network, 1e-4), GradientClipping(network, clip_norm),
                        FiniteSteps(network, on_nonfinite, read_every)],
    )  # fmt: skip


def _state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("value", BAD)
def test_a_skipped_step_changes_nothing_and_is_told(value: float, caplog: pytest.LogCaptureFixture) -> None:
    network, states = _network(), []
    trainer = _trainer(network, bad_cases={3: value})
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: states.append(_state(network)))
    with caplog.at_level(logging.WARNING, "scripts.training.finite_steps"):
        trainer.run()
    same = [all(torch.equal(a[n], b[n]) for n in a) for a, b in itertools.pairwise(states)]
    assert same == [number == 3 for number in range(1, 8)]  # weights, moments' effect and running statistics
    assert not not_finite(network.state_dict())
    (message,) = [record.getMessage() for record in caplog.records]
    for part in ("step 4 (epoch 1, cases case_3)", "loss nan", "gradient norm nan"):
        assert part in message


def test_skipping_leaves_the_other_steps_as_they_are() -> None:
    """Without the bad case at all, the weights are the same (normalisation by the batch, no momentum but Adam's)."""
    first, second = _network(), _network()
    _trainer(first, bad_cases={7: float("nan")}).run()
    _trainer(second, cases=7).run()
    assert all(torch.equal(a, b) for a, b in zip(_state(first).values(), _state(second).values(), strict=True))


@pytest.mark.parametrize("value", BAD)
def test_a_step_is_skipped_on_the_device_and_read_later(value: float, caplog: pytest.LogCaptureFixture) -> None:
    network, states = _network(), []
    trainer = _trainer(network, bad_cases={3: value}, read_every=3)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: states.append(_state(network)))
    with caplog.at_level(logging.WARNING, "scripts.training.finite_steps"):
        trainer.run()
    same = [all(torch.equal(a[n], b[n]) for n in a) for a, b in itertools.pairwise(states)]
    assert same == [number == 3 for number in range(1, 8)]
    (message,) = [record.getMessage() for record in caplog.records]
    for part in ("step 4 (epoch 1, cases case_3)", "loss nan", "gradient norm nan"):
        assert part in message
    reference = _network()
    _trainer(reference, bad_cases={3: value}).run()
    for name, expected in _state(reference).items():
        torch.testing.assert_close(_state(network)[name], expected, atol=1e-6, rtol=1e-5)


def test_a_training_ends_with_the_reading_that_finds_too_many_skipped_steps() -> None:
    network = _network()
    spoil = [2, 3, 4, 5]
    trainer = _trainer(network, "skip", lambda step, loss: loss * float("inf") if step in spoil else loss, read_every=4)
    with pytest.raises(UserError, match=r"(?s)step 5 .*cases case_4\), loss nan.*--learning_rate"):
        trainer.run()
    assert trainer.state.iteration == 8
    assert not not_finite(network.state_dict())


@pytest.mark.parametrize(
    ("on_nonfinite", "bad", "ends"),
    [("skip", [1, 2, 3], None), ("skip", [2, 3, 4, 5], 5), ("skip", [1, 2, 3, 5, 6, 7], None), ("stop", [3], 3)],
)
def test_how_many_steps_are_skipped(on_nonfinite: str, bad: list[int], ends: int | None) -> None:
    network = _network()
    trainer = _trainer(network, on_nonfinite, lambda step, loss: loss * float("nan") if step in bad else loss)
    if ends is None:
        trainer.run()
        assert trainer.state.iteration == 8
        return
    with pytest.raises(UserError, match=rf"(?s)step {ends} .*cases case_{ends - 1}\), loss nan.*--learning_rate"):
        trainer.run()
    assert not not_finite(network.state_dict())


@pytest.mark.parametrize("options", [{"clip_norm": float("nan")}, {"learning_rate": 1e30}])
def test_what_spoils_the_weights_ends_the_training(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"Not finite|not finite"):
        _trainer(_network(), **options).run()


def test_an_infinite_loss_without_a_gradient_is_noticed() -> None:
    with pytest.raises(UserError, match="loss inf"):
        _trainer(_network(), "stop", lambda step, loss: loss + float("inf")).run()


def test_overflow_in_mixed_precision_is_the_scalers() -> None:
    """A GradScaler skips such steps itself; only too many in a row end the training."""
    network = _network()
    trainer = _trainer(network)
    trainer.amp, trainer.scaler = True, object()  # type: ignore[assignment]
    trainer.state.output = {"loss": torch.tensor(1.0)}  # type: ignore[assignment]
    trainer.state.batch = [{"case": "c"}]
    steps = FiniteSteps(network)
    for p in network.parameters():
        p.grad = torch.full_like(p, float("inf"))
    for _ in range(20):
        steps.keep_buffers(trainer)
        steps(trainer)
        assert all(p.grad is not None for p in network.parameters())
    with pytest.raises(UserError, match=r"cases c\), loss 1, gradient norm inf"):
        steps(trainer)


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    network, path = _network(), tmp_path / "model.pt"
    weights.save_weights(network, path)
    before = path.read_bytes()
    for value in BAD:
        with torch.no_grad():
            network[3].weight[0, 1, 0, 0, 0] = value
        with pytest.raises(UserError, match=r"3\.weight"):
            weights.save_weights(network, path)
        assert path.read_bytes() == before
        torch.save({"model": network.state_dict()}, tmp_path / "bad.pt")
        with pytest.raises(UserError, match=r"bad.pt are not finite: 3\.weight"):
            weights.read_weights(tmp_path / "bad.pt", network)


def test_large_weights_are_finite() -> None:
    assert not_finite({"a": torch.full((4,), 3e38), "n": torch.tensor(3), "b": torch.full((2,), -3e38)}) == ""
    assert not_finite({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}) == "b"


@pytest.mark.parametrize("flips", [[], [0]])
def test_an_output_that_is_not_finite_gives_no_mask(flips: list[int], tmp_path: Path) -> None:
    network = _network().eval()
    inputs = MetaTensor(torch.randn(1, 2, 6, 6, 6), meta={"filename_or_obj": ["some/case-ADC_ss.mha"]})
    inferer = EnsembleInferer(str(tmp_path / "model.pt"), flips)
    assert torch.isfinite(inferer(inputs, network)).all()
    with pytest.raises(UserError, match=r"some/case-ADC_ss.mha: the network's output is not finite, nor is its input"):
        inferer(inputs * float("inf"), network)
    with torch.no_grad():
        network[3].bias[0] = float("nan")
    with pytest.raises(UserError, match="output is not finite; no mask is written"):
        inferer(inputs, network)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    network, contents = _network(), []
    for name in ("model.pt", "deep/other.pt", "model.pt"):
        weights.save_weights(network, tmp_path / name, {"a": 1}, {"epoch": 3})
        contents.append((tmp_path / name).read_bytes())
    assert len(set(contents)) == 1


def test_the_message_of_an_unsafe_checkpoint_does_not_advise_to_load_it(tmp_path: Path) -> None:
    contents: dict[str, Any] = {"pickle": {"model": Path("x")}}
    torch.save(contents["pickle"], tmp_path / "pickle.pt")
    (tmp_path / "text.pt").write_text("text")
    weights.save_weights(_network(), tmp_path / "whole.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:1000])
    (tmp_path / "empty.pt").touch()
    for name in ("pickle", "text", "half", "empty"):
        with pytest.raises(UserError, match="can read safely") as caught:
            weights.read_weights(tmp_path / f"{name}.pt", _network())
        assert "weights_only" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": [1.0]}, "holds a list as 'model', not a state dict"),
        ({"recipe": 3}, "does not state what bad.pt was trained with"),
        ({"recipe": "[1]"}, "does not state what bad.pt was trained with"),
        ({"recipe": "{", "training": "{}"}, "does not state what bad.pt was trained with"),
    ],
)
def test_checkpoints_with_parts_of_another_type_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    network, path = _network(), tmp_path / "bad.pt"
    torch.save({"model": network.state_dict(), "recipe": "{}", "training": "{}", **change}, path)
    with pytest.raises(UserError, match=message):
        weights.load_weights(network, [path], {"spatial_size": 1})


def test_complex_weights_and_layers_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    network, path = _network(), tmp_path / "bad.pt"
    for name, value in (("3.weight", network[3].weight.detach().to(torch.complex64)), ("3.bias", 1.0)):
        torch.save({"model": {**network.state_dict(), name: value}}, path)
        with pytest.raises(UserError, match=rf"do not fit the network(?s:.*){name}: .*(complex64|float) in the file"):
            weights.read_weights(path, network)


def test_a_checkpoint_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, path, reads = _network(), tmp_path / "model.pt", []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: reads.append(1) or real(*args, **options))
    weights.save_weights(network, path, {"a": 1}, {"epoch": 3})
    for _ in range(3):
        weights.read_weights(path, network)
        assert weights.read_record(path)["training"] == {"epoch": 3}
    assert len(reads) == 1
    weights.save_weights(network, path, {"a": 1}, {"epoch": 4})
    assert weights.read_record(path)["training"] == {"epoch": 4}
    assert len(reads) == 2
