"""The parts of a training step against the stock libraries: each first shown to give the same, then timed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import monai.losses
import numpy as np
import surface_distance
import torch
import torchio
from monai.bundle import ConfigParser
from monai.metrics import compute_average_surface_distance, compute_surface_dice
from scipy import ndimage
from timing import compare, seconds
from torch.nn import functional

from scripts import losses
from scripts.evaluation import metrics
from scripts.geometry.distance import boundary_distance
from scripts.geometry.surfaces import cropped
from scripts.io.weights import save_weights
from scripts.training.handlers import Resume
from scripts.transforms import fast

OURS = SimpleNamespace(
    RandomAnisotropy=fast.FastAnisotropy,
    RandomBlur=fast.FastBlur,
    RandomElasticDeformation=fast.FastElasticDeformation,
)

Shape = tuple[int, int, int]
AFFINE = np.diag([1.25, 1.25, 4.0, 1.0])  # mm; of the usual BONBID-HIE case
STUDY_PROBABILITY = 0.5


def batch(batch_size: int, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and target of a half-trained network: lesions of several sizes, smooth errors all over."""
    generator = torch.Generator().manual_seed(0)
    target = torch.stack([lesion(shape, 0.04 * (1 + item % 4)) for item in range(batch_size)])
    noise = torch.randn(target.shape, generator=generator)
    return functional.avg_pool3d(noise, 5, stride=1, padding=2) * 8 + 3 * target - 1.5, target


def lesion(shape: Shape, size: float) -> torch.Tensor:
    """An ellipsoid off the centre, shape (1, X, Y, Z); ``size`` is the square of its radius, the volume being ±1."""
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    return ((x - 0.1) ** 2 + (y + 0.2) ** 2 + (z / 2) ** 2 < size).float()[None]


def sample(shape: Shape) -> torchio.Subject:
    """A two-channel head on a constant background, with a lesion."""
    x, y, z = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    image = torch.where(x**2 + y**2 + (z / 1.2) ** 2 < 0.6, 1.0 + noise, -1.0)
    return torchio.Subject(
        image=torchio.ScalarImage(tensor=functional.avg_pool3d(image, 3, stride=1, padding=1), affine=AFFINE),
        label=torchio.LabelMap(tensor=lesion(shape, 0.08), affine=AFFINE),
    )


def distance_transform(batch_size: int, shape: Shape, repeats: int) -> dict[str, Any]:
    """Distances of the target to its boundary: SciPy's transform of the inside and of the outside against ours."""
    mask = batch(batch_size, shape)[1] > 0.5

    def stock() -> np.ndarray:
        return np.stack([ndimage.distance_transform_edt(m) + ndimage.distance_transform_edt(~m) for m in mask.numpy()])

    volumes = mask[:, 0].numpy()
    expected = np.stack([ndimage.distance_transform_edt(m) + ndimage.distance_transform_edt(~m) for m in volumes])
    np.testing.assert_allclose(boundary_distance(mask)[:, 0].numpy(), expected, rtol=1e-4)
    return compare(stock, lambda: boundary_distance(mask), repeats)


def hausdorff_loss(batch_size: int, shape: Shape, repeats: int, device: str) -> dict[str, Any]:
    """Loss and gradient: MONAI's HausdorffDTLoss against ours; also how many Dice losses ours costs."""
    logits, target = (tensor.to(device) for tensor in batch(batch_size, shape))

    def step(loss: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        x = logits.clone().requires_grad_()
        value = loss(x, target)
        value.backward()
        return value.detach(), x.grad

    stock = monai.losses.HausdorffDTLoss(sigmoid=True, include_background=True)
    ours = losses.HausdorffLoss(sigmoid=True, include_background=True)
    torch.testing.assert_close(step(ours), step(stock), rtol=1e-5, atol=1e-9)
    dice = monai.losses.DiceLoss(sigmoid=True)
    step(dice)
    result = compare(lambda: step(stock), lambda: step(ours), repeats)
    result["dice_s"] = float(np.median([seconds(lambda: step(dice)) for _ in range(repeats)]))
    return result


def transform(make: Callable[[Any], torchio.Transform], shape: Shape, repeats: int, draws: int = 1) -> dict[str, Any]:
    """One augmentation of a sample with its label: TorchIO's against ours, from the same seeds.

    Args:
        make: the transform with the classes of a given module.
        draws: how often a run draws and applies it; times are per draw.
    """
    subject, ways = sample(shape), {"stock": make(torchio), "ours": make(OURS)}

    def run(way: str, first_seed: int = 0) -> list[torchio.Subject]:
        results = []
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The maximum displacement")
            for seed in range(first_seed, first_seed + draws):
                torch.manual_seed(seed)
                results.append(ways[way](subject))
        return results

    for stock, ours in zip(run("stock"), run("ours"), strict=True):
        difference = (stock.image.data - ours.image.data).abs().mean() / stock.image.data.std()
        truth = stock.label.data > 0.5
        assert difference < 0.01, f"images differ by {difference:.3%} of the standard deviation"
        assert ((ours.label.data > 0.5) & truth).sum() >= 0.995 * truth.sum(), "labels differ"
    result = compare(lambda: run("stock"), lambda: run("ours"), repeats)
    for key in ("stock_s", "ours_s"):
        result[key] /= draws
    result["all_s"] = {way: [value / draws for value in values] for way, values in result["all_s"].items()}
    return result


def surface_metrics(shape: Shape, repeats: int) -> dict[str, Any]:
    """All surface metrics of a case whose lesion is a fifth of the brain: the libraries' own functions against ours."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    brain = (grid**2).sum(0) < 0.8
    truth_field = ndimage.gaussian_filter(rng.normal(size=shape), 4)
    pred_field = truth_field + 0.3 * ndimage.gaussian_filter(rng.normal(size=shape), 4)
    pred, truth = (brain & (field > np.quantile(field[brain], 0.8)) for field in (pred_field, truth_field))
    spacing = (0.9, 0.9, 2.0)

    def stock() -> list[float]:
        surfels = surface_distance.compute_surface_distances(truth, pred, spacing)
        p, t = (torch.from_numpy(mask)[None, None] for mask in (pred, truth))
        options: dict[str, Any] = {"include_background": True, "spacing": list(spacing)}
        directed = [float(compute_average_surface_distance(a, b, **options)) for a, b in ((p, t), (t, p))]
        return [
            float(np.mean(surface_distance.compute_average_surface_distance(surfels))),
            surface_distance.compute_surface_dice_at_tolerance(surfels, 2.0),
            surface_distance.compute_robust_hausdorff(surfels, 95),
            sum(directed) / 2,
            float(compute_surface_dice(p, t, [2.0], **options)),
        ]

    def surfaces() -> dict[str, float]:
        masks = cropped(pred, truth, spacing)
        return metrics.challenge_metrics(*masks, spacing) | metrics.paper_metrics(*masks, spacing)

    ours = surfaces()
    names = ("masd_mm", "nsd", "hd95_mm", "paper_msd_mm", "paper_nsd")
    np.testing.assert_allclose([ours[name] for name in names], stock(), rtol=1e-6)
    return compare(stock, surfaces, repeats)


def checkpoint(repeats: int) -> dict[str, Any]:
    """What an epoch of strong.yaml writes at most: the state of the training and, if they are the best, the weights.

    ``processor_s`` is the mean processor time, which other work on the machine hardly changes.
    """
    configs = Path(losses.__file__).parents[1] / "configs"
    parser = ConfigParser()
    parser.read_config([str(configs / name) for name in ("train.yaml", "strong.yaml")])
    network = parser.get_parsed_content("network_def")
    optimizer = torch.optim.AdamW(network.parameters())
    sum(parameter.sum() for parameter in network.parameters()).backward()
    optimizer.step()
    state = SimpleNamespace(epoch=1, iteration=1, best_metric=0.5, best_metric_epoch=1)
    engine: Any = SimpleNamespace(state=state, scaler=None, should_terminate=False)
    with TemporaryDirectory() as folder:
        path = Path(folder)
        resume = Resume(str(path / "state.pt"), {"network": network, "optimizer": optimizer}, engine)

        def write() -> None:
            resume(engine)
            save_weights(network, path / "model.pt")

        started = time.process_time()
        result = alone(write, repeats)
        return {**result, "processor_s": (time.process_time() - started) / (repeats + 1)}


def study_chain(module: Any) -> torchio.Compose:
    """The study's five augmentations; those that are not in ``module`` are TorchIO's."""

    def one(name: str, **arguments: Any) -> torchio.Transform:
        return getattr(module, name, getattr(torchio, name))(p=STUDY_PROBABILITY, **arguments)

    return torchio.Compose(
        [
            one("RandomNoise", std=0.01),
            one("RandomAnisotropy", downsampling=(1.2, 2.0)),
            one("RandomBlur", std=(0.0, 0.5)),
            one("RandomGamma", log_gamma=(-0.1, 0.1)),
            one("RandomElasticDeformation"),
        ]
    )


def parts(
    batch_size: int, shape: Shape, metrics_shape: Shape, repeats: int, draws: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part at one size: its name and its times."""
    yield "Hausdorff loss and gradient, cpu", hausdorff_loss(batch_size, shape, repeats, "cpu")
    yield "distance transform of a batch", distance_transform(batch_size, shape, repeats)
    yield "elastic deformation", transform(lambda m: m.RandomElasticDeformation(), shape, repeats)
    yield "anisotropy", transform(lambda m: m.RandomAnisotropy(downsampling=(1.2, 2.0)), shape, repeats)
    yield "blur", transform(lambda m: m.RandomBlur(std=(0.0, 0.5)), shape, repeats)
    yield "all five augmentations, each with p = 0.5", transform(study_chain, shape, repeats, draws)
    yield "surface metrics of a case", surface_metrics(metrics_shape, repeats)


def growth(shapes: list[Shape], batch_sizes: list[int], repeats: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ours alone: how the cost grows with the volume and with the batch."""
    for shape in shapes:
        logits, target = batch(1, shape)
        loss = losses.HausdorffLoss(sigmoid=True, include_background=True)
        elastic, subject = fast.FastElasticDeformation(max_displacement=4.0), sample(shape)
        name = "×".join(map(str, shape))
        yield f"Hausdorff loss, batch 1, {name}", alone(lambda x=logits, y=target, f=loss: f(x, y), repeats)
        yield f"elastic deformation, {name}", alone(lambda f=elastic, s=subject: f(s), repeats)
    for batch_size in batch_sizes:
        logits, target = batch(batch_size, shapes[-1])
        name = "×".join(map(str, shapes[-1]))
        yield f"Hausdorff loss, batch {batch_size}, {name}", alone(lambda x=logits, y=target, f=loss: f(x, y), repeats)


def alone(work: Callable[[], object], repeats: int) -> dict[str, Any]:
    work()
    times = [seconds(work) for _ in range(repeats)]
    return {"ours_s": float(np.median(times)), "repeats": repeats, "all_s": {"ours": times}}
