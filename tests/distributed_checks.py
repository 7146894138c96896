"""What each process of test_distributed.py does, started by torchrun: what it saw goes to FOLDER/<rank>.pt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import IgniteMetricHandler, ValidationHandler, from_engine
from monai.metrics import DiceMetric
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from scripts.networks import HIEUNet
from scripts.runtime.distributed import SameBuffers, gather_interleaved, mean_over_ranks, shard, start, stop
from scripts.training import handlers

CONFIG = Path(__file__).resolve().parents[1] / "hie_bundle" / "configs" / "train.yaml"
BATCH, CASES = 4, 5


def losses(over_ranks: bool) -> dict[str, nn.Module]:
    """The config's losses."""
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    parser["log_hausdorff#over_ranks"] = parser["losses#dice_ce#over_ranks"] = over_ranks
    return parser.get_parsed_content("losses")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (4, 2, 16, 16, 16) and masks (4, 1, 16, 16, 16); the masks differ much in size, one is empty."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 2, 16, 16, 16, generator=generator)
    labels = torch.zeros(BATCH, 1, 16, 16, 16)
    labels[1, :, 2:4, 2:5, 3:6] = 1
    labels[2, :, 1:9, 4:14, 2:9] = 1
    labels[3, :, 12:, 12:, 12:] = 1
    return images, labels


def network(batch_statistics: bool = False) -> HIEUNet:
    """The same small network each time; without dropout, its normalisation fixed unless ``batch_statistics``."""
    torch.manual_seed(0)
    net = HIEUNet(2, 1, features=(4, 6, 8, 10), dropout=(0, 0, 0, 0), prior=0.3)
    return net.train(batch_statistics)


def gradients(net: nn.Module, loss: nn.Module, images: torch.Tensor, labels: torch.Tensor, l1: float) -> torch.Tensor:
    """All of them after one backward pass with the L1 penalty, as one vector."""
    net.zero_grad()
    penalty = l1 * torch.stack([p.abs().sum() for p in net.parameters()]).sum()
    (loss(net(images), labels) + penalty).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def cases() -> list[dict[str, torch.Tensor]]:
    """Uneven over two ranks."""
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "image": torch.randn(2, 16, 16, 16, generator=generator),
            "label": (torch.rand(1, 16, 16, 16, generator=generator) > 0.2 * i).float(),
        }
        for i in range(CASES)
    ]


def evaluator(net: nn.Module, data: list[dict[str, torch.Tensor]]) -> SupervisedEvaluator:
    """MONAI's evaluator with Dice as its key metric."""

    def threshold(item: dict[str, Any]) -> dict[str, Any]:
        return {**item, "pred": (item["pred"] > item["pred"].median()).float()}

    return SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(data), batch_size=1),
        network=net,
        postprocessing=threshold,
        key_val_metric={
            "dice": IgniteMetricHandler(DiceMetric(ignore_empty=False), output_transform=from_engine(["pred", "label"]))
        },
        val_handlers=[SameBuffers(net)],
    )


def train(folder: Path, rank: int, epochs: int, patience: int, resume: bool = False) -> tuple[int, torch.Tensor]:
    """A training that stops early; each rank has other files, of which rank 0's count."""
    net = network(batch_statistics=True)
    wrapped = DistributedDataParallel(net)
    validator = evaluator(net, shard(cases(), rank, 2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3 if patience > 1 else 0.0)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=DataLoader(Dataset(shard(cases()[:4], rank, 2)), batch_size=1),
        network=wrapped,
        optimizer=optimizer,
        loss_function=nn.BCEWithLogitsLoss(),
        train_handlers=[
            handlers.EpochSeed(0, rank),
            ValidationHandler(1, validator),
            handlers.BestModelSaver(wrapped, str(folder / "model.pt"), validator),
            handlers.PatienceHandler(validator, patience),
            handlers.Resume(str(folder / "state.pt"), {"network": wrapped, "optimizer": optimizer}, validator, resume),
        ],
    )
    trainer.run()
    return trainer.state.epoch, torch.cat([p.detach().flatten() for p in net.parameters()])


def main(folder: Path) -> None:
    """Everything that two processes do together."""
    start(torch.device("cpu"))
    rank = distributed.get_rank()
    seen: dict[str, Any] = {}
    images, labels = (part.chunk(2)[rank] for part in batch())
    net = network()
    wrapped = DistributedDataParallel(net)
    for over_ranks in (True, False):
        for name, loss in losses(over_ranks).items():
            seen["gradients", name, over_ranks] = gradients(wrapped, loss, images, labels, 1e-4).clone()
    net = network(batch_statistics=True)
    seen["gradients", "batch statistics"] = gradients(
        DistributedDataParallel(net), losses(True)["dice"], images, labels, 0.0
    ).clone()

    net = network()
    validator = evaluator(net, shard(cases(), rank, 2))
    validator.run()
    seen["dice"] = validator.state.metrics["dice"]
    validator = evaluator(net, shard(cases()[:1], rank, 2))
    validator.run()
    seen["dice of one case"] = validator.state.metrics["dice"]

    seen["gathered"] = gather_interleaved(shard(list(range(CASES)), rank, 2))
    seen["mean"] = float(mean_over_ranks(torch.tensor(float(rank))))
    # a learning rate of zero: no epoch is better than the first one
    seen["stopped"], _ = train(folder / f"still-{rank}", rank, epochs=9, patience=1)
    _, seen["weights"] = train(folder / f"whole-{rank}", rank, epochs=4, patience=9)
    train(folder / f"parts-{rank}", rank, epochs=2, patience=9)
    seen["resumed epochs"], seen["resumed weights"] = train(folder / f"parts-{rank}", rank, 4, 9, resume=True)
    torch.save(seen, folder / f"{rank}.pt")
    stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
