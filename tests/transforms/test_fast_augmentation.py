"""The fast augmentations against TorchIO's own, and against closed forms."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchio
from scipy.spatial.transform import Rotation

from scripts.transforms import fast

OURS = SimpleNamespace(
    RandomAnisotropy=fast.FastAnisotropy,
    RandomBlur=fast.FastBlur,
    RandomElasticDeformation=fast.FastElasticDeformation,
)

ROTATION = Rotation.from_euler("xyz", (10, 20, -15), degrees=True).as_matrix()
STEEP_ROTATION = Rotation.from_euler("xyz", (50, 60, -45), degrees=True).as_matrix()
PERMUTATION = np.eye(3)[[2, 0, 1]]

# name: shape, direction (columns are the voxel axes in RAS), spacing in mm
GEOMETRIES = {
    "RAS, thick slices": ((40, 36, 12), np.eye(3), (1.5, 1.5, 5.0)),
    "LPS": ((40, 36, 12), np.diag([-1.0, -1, 1]), (1.5, 1.2, 4.0)),
    "LAI, odd size": ((31, 37, 21), np.diag([-1.0, 1, -1]), (1.5, 1.2, 3.0)),
    "permuted axes": ((40, 36, 12), PERMUTATION @ np.diag([-1.0, 1, -1]), (1.5, 1.5, 4.0)),
    "oblique": ((40, 36, 12), ROTATION, (1.5, 1.5, 4.0)),
    "oblique, flipped": ((31, 36, 13), ROTATION @ np.diag([-1.0, 1, -1]), (1.5, 1.5, 4.0)),
    "oblique, permuted": ((40, 36, 16), ROTATION @ PERMUTATION, (1.5, 1.5, 4.0)),
    "steep": ((40, 36, 12), STEEP_ROTATION, (1.5, 1.5, 4.0)),
    "one slice": ((40, 36, 1), np.eye(3), (1.5, 1.5, 4.0)),
}


def make_subject(shape: tuple[int, int, int], direction: np.ndarray, spacing_mm: tuple[float, ...]) -> torchio.Subject:
    """A textured two-channel ellipsoid on a constant background, with a lesion."""
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing_mm
    affine[:3, 3] = (5.0, -7.0, 11.0)
    texture = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    image = torch.where(x**2 + y**2 + z**2 < 0.9, texture + torch.tensor([10.0, -3.0]).view(2, 1, 1, 1), 0.0)
    lesion = ((x - 0.1) ** 2 + (y + 0.2) ** 2 + z**2 < 0.3).float()[None]
    return torchio.Subject(
        image=torchio.ScalarImage(tensor=image, affine=affine), label=torchio.LabelMap(tensor=lesion, affine=affine)
    )


@pytest.fixture(params=GEOMETRIES)
def subject(request: pytest.FixtureRequest) -> torchio.Subject:
    return make_subject(*GEOMETRIES[request.param])


@pytest.fixture
def oblique_subject() -> torchio.Subject:
    return make_subject(*GEOMETRIES["oblique"])


@pytest.fixture(autouse=True)
def _no_folding_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The maximum displacement")
        yield


def both(
    make: Callable[..., torchio.Transform], subject: torchio.Subject, seed: int = 0
) -> tuple[torchio.Subject, torchio.Subject]:
    """The subject by TorchIO and by the fast classes from one random state, which they must leave alike."""
    results, states = [], []
    for module in (torchio, OURS):
        torch.manual_seed(seed)
        results.append(make(module)(subject))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    return results[0], results[1]


def assert_images_equal(ours: torchio.Subject, theirs: torchio.Subject, relative: float = 1e-4) -> None:
    for name in ("image", "label"):
        a, b = ours[name], theirs[name]
        assert type(a) is type(b)
        assert a.data.dtype == b.data.dtype
        np.testing.assert_allclose(a.affine, b.affine, atol=1e-9)
    tolerance = relative * float(theirs["image"].data.float().std())
    torch.testing.assert_close(ours["image"].data, theirs["image"].data, rtol=0, atol=tolerance)
    # A position on the border of two voxels may go to either.
    truth = theirs["label"].data > 0.5
    assert ((ours["label"].data > 0.5) & truth).sum() >= 0.999 * truth.sum()
    assert (ours["label"].data != theirs["label"].data).sum() <= 0.001 * truth.sum()


@pytest.mark.parametrize("seed", [0, 1])
def test_elastic_deformation_equals_torchio(subject: torchio.Subject, seed: int) -> None:
    theirs, ours = both(lambda module: module.RandomElasticDeformation(max_displacement=(7, 5, 8)), subject, seed)
    assert_images_equal(ours, theirs)
    # it did move
    assert (ours.image.data - subject.image.data).abs().mean() > 0.1 * subject.image.data.std()
    assert (ours.label.data != subject.label.data).any()


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_control_points": (5, 9, 6), "locked_borders": 2},
        {"num_control_points": (4, 7, 5), "locked_borders": 1},
        {"num_control_points": 7, "locked_borders": 0, "max_displacement": 15.0},  # far beyond the border
        {"image_interpolation": "nearest"},
        {"label_interpolation": "linear"},
        {"image_interpolation": "bspline"},  # left to TorchIO
        {"max_displacement": (0, 6, 0)},
        {"max_displacement": 0},
    ],
)
def test_elastic_arguments_mean_the_same(oblique_subject: torchio.Subject, arguments: dict) -> None:
    theirs, ours = both(lambda module: module.RandomElasticDeformation(**arguments), oblique_subject)
    if arguments.get("image_interpolation") == "nearest":
        assert (ours.image.data != theirs.image.data).float().mean() < 1e-3
        ours.image.set_data(theirs.image.data)
    if arguments.get("label_interpolation") == "linear":
        torch.testing.assert_close(ours.label.data, theirs.label.data, rtol=0, atol=1e-4)
        ours.label.set_data(theirs.label.data)
    assert_images_equal(ours, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_elastic_border_value_is_each_channels_minimum(seed: int) -> None:
    subject = make_subject(*GEOMETRIES["LPS"])
    subject.image.set_data(subject.image.data + torch.tensor([100.0, -50.0]).view(2, 1, 1, 1))
    make = {"locked_borders": 0, "max_displacement": 20.0}
    theirs, ours = both(lambda module: module.RandomElasticDeformation(**make), subject, seed)
    assert_images_equal(ours, theirs)


def test_equal_control_points_translate(monkeypatch: pytest.MonkeyPatch) -> None:
    # Basis values sum to one: equal control points displace every voxel alike. Displacements are in mm along LPS.
    subject = make_subject((24, 20, 10), np.eye(3), (1.5, 2.0, 4.0))
    control_points = np.broadcast_to(np.array([3.0, -4.0, 8.0], dtype=np.float32), (6, 5, 7, 3)).copy()
    monkeypatch.setattr(fast.FastElasticDeformation, "get_params", lambda *_: control_points)
    moved = fast.FastElasticDeformation(max_displacement=8.0)(subject)
    # +3 mm left are 2 voxels down in x, 4 mm anterior are 2 voxels up in y, 8 mm superior 2 up in z
    expected = subject.image.data[:, :-2, 2:, 2:]
    torch.testing.assert_close(moved.image.data[:, 2:, :-2, :-2], expected, rtol=0, atol=1e-3)
    assert torch.equal(moved.label.data[:, 2:, :-2, :-2], subject.label.data[:, :-2, 2:, 2:])


def test_elastic_warns_of_folding_as_torchio_does(oblique_subject: torchio.Subject) -> None:
    with pytest.warns(RuntimeWarning, match="folding"):
        fast.FastElasticDeformation(max_displacement=60)(oblique_subject)


@pytest.mark.parametrize("seed", range(6))
def test_anisotropy_equals_torchio(subject: torchio.Subject, seed: int) -> None:
    axes = (0, 1, 2) if not subject.is_2d() else (0, 1)
    theirs, ours = both(lambda module: module.RandomAnisotropy(axes=axes, downsampling=(1.2, 3)), subject, seed)
    # Where a coarse voxel's centre falls between two voxels, as in the middle of an even axis, ITK's rounding errors
    # decide which one it takes if the affine is oblique. So leave out what depends on it.
    torch.manual_seed(seed)
    torch.rand(1)
    axis, factor = torchio.RandomAnisotropy(axes=axes, downsampling=(1.2, 3)).get_params(axes, (1.2, 3))
    size = subject.spatial_shape[axis]
    if size % 2 == 0 and int(size / factor) % 2 == 1:
        kept = torch.from_numpy(np.flatnonzero(np.abs(np.arange(size) - (size - 1) / 2) > factor))
        for result in (theirs, ours):
            result.image.set_data(result.image.data.index_select(axis + 1, kept))
    torch.testing.assert_close(ours.image.data, theirs.image.data, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.label.data, subject.label.data)
    np.testing.assert_allclose(ours.image.affine, theirs.image.affine, atol=1e-9)


def test_anisotropy_changes_only_its_axis() -> None:
    ramp = torch.arange(12.0).view(1, 12, 1, 1).expand(1, 12, 4, 4).contiguous()
    assert torch.equal(fast.coarsen(ramp, 2, 2.0)[:, :, 1:3], ramp[:, :, 1:3])
    # By two along a ramp: the coarse voxels take the upper of their two; between them values are linear.
    coarse = fast.coarsen(ramp, 1, 2.0)[0, :, 0, 0]
    torch.testing.assert_close(coarse[1:-1], torch.arange(1.5, 11.0, 1.0))


def test_anisotropy_keeps_all_slices_along_the_other_axes() -> None:
    # At this spacing 12 * spacing / spacing is below 12, and TorchIO's coarse grid has 11 slices.
    spacing = float(np.float64(4.0) - 2**-51 * 2)
    assert 12 * spacing / spacing < 12
    subject = make_subject((16, 16, 12), np.eye(3), (1.0, 1.0, spacing))
    stock = torchio.Resample((2.0, 1.0, spacing))(subject)
    assert stock.spatial_shape == (8, 16, 11)
    flat = subject.image.data[:, :1].expand(-1, 16, -1, -1).contiguous()
    subject.image.set_data(flat)
    ours = fast.FastAnisotropy(axes=(0,), downsampling=2.0)(subject).image.data
    torch.testing.assert_close(ours, flat)


def test_anisotropy_of_images_on_different_grids_is_refused() -> None:
    subject = make_subject(*GEOMETRIES["LPS"])
    subject.add_image(torchio.ScalarImage(tensor=torch.zeros(1, 4, 4, 4)), "other")
    with pytest.raises(RuntimeError, match="space"):
        fast.FastAnisotropy()(subject)


@pytest.mark.parametrize("arguments", [{"scalars_only": False}, {"image_interpolation": "nearest"}])
def test_anisotropy_leaves_other_arguments_to_torchio(oblique_subject: torchio.Subject, arguments: dict) -> None:
    theirs, ours = both(lambda module: module.RandomAnisotropy(**arguments), oblique_subject)
    assert torch.equal(ours.image.data, theirs.image.data)
    assert torch.equal(ours.label.data, theirs.label.data)


@pytest.mark.parametrize("std_mm", [(0.0, 0.5), (0.5, 2.0), (0.0, 0.0), (20.0, 40.0)])
def test_blur_equals_torchio(subject: torchio.Subject, std_mm: tuple[float, float]) -> None:
    theirs, ours = both(lambda module: module.RandomBlur(std=std_mm), subject)
    assert_images_equal(ours, theirs, relative=1e-5)
    assert torch.equal(ours.image.data, subject.image.data) == (std_mm == (0.0, 0.0))


def test_integer_images_give_what_torchio_gives(oblique_subject: torchio.Subject) -> None:
    oblique_subject.image.set_data((oblique_subject.image.data * 100).to(torch.int16))
    for name in ("RandomBlur", "RandomElasticDeformation", "RandomAnisotropy"):
        theirs, ours = both(lambda module, name=name: getattr(module, name)(), oblique_subject)
        assert_images_equal(ours, theirs)


def chain(module: object, **arguments: object) -> torchio.Compose:
    """The study's augmentations."""
    return torchio.Compose(
        [
            torchio.RandomNoise(std=0.01, p=0.5, **arguments),
            module.RandomAnisotropy(downsampling=(1.2, 2), p=0.5, **arguments),  # type: ignore[attr-defined]
            module.RandomBlur(std=(0, 0.5), p=0.5, **arguments),  # type: ignore[attr-defined]
            torchio.RandomGamma(log_gamma=(-0.1, 0.1), p=0.5, **arguments),
            module.RandomElasticDeformation(p=0.5, **arguments),  # type: ignore[attr-defined]
        ],
        **arguments,
    )


def test_whole_chain_follows_torchio_from_the_same_seed() -> None:
    subject = make_subject(*GEOMETRIES["LPS"])
    changed = 0
    for seed in range(20):
        theirs, ours = both(chain, subject, seed)
        assert_images_equal(ours, theirs, relative=1e-3)
        changed += not torch.equal(ours.image.data, subject.image.data)
    assert changed > 15


def test_input_stays_as_it_was() -> None:
    # Without copies too: what a cache holds may be handed in.
    subject = make_subject(*GEOMETRIES["LPS"])
    image, label = subject.image.data.clone(), subject.label.data.clone()
    for arguments in ({}, {"copy": False}):
        torch.manual_seed(0)
        for _ in range(10):
            given = torchio.Subject(
                image=torchio.ScalarImage(tensor=subject.image.data, affine=subject.image.affine),
                label=torchio.LabelMap(tensor=subject.label.data, affine=subject.label.affine),
            )
            chain(OURS, **arguments)(given)
            assert torch.equal(subject.image.data, image)
            assert torch.equal(subject.label.data, label)
