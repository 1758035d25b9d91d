"""Crops against torchvision's RandomResizedCrop on original images."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from hf_essl import Views
from hf_essl.config import ViewArguments
from hf_essl.data import decode
from hf_essl.views.crops import describe_crops, enlarged_share, sample_boxes
from hf_essl.views.resample import resample

SCALE, RATIO = [0.2, 1.0], [3 / 4, 4 / 3]


@pytest.fixture(scope="module")
def photographs():
    if "HF_ESSL_IMAGENETTE" not in os.environ:
        pytest.skip("HF_ESSL_IMAGENETTE names no data")
    return sorted((Path(os.environ["HF_ESSL_IMAGENETTE"]).parent / "mixed").rglob("*.JPEG"))


def described(box, aspect):
    """Area share, log of width / height, and the center, of boxes N x 4 in images of width / height N."""
    left, top, width, height = box.double().T
    shape = np.log((width / height * aspect).numpy())
    center = [(left + width / 2).numpy().round(3), (top + height / 2).numpy().round(3)]  # ties of centered boxes
    return [(width * height).numpy(), shape, *center]


def by_torchvision(sizes, scale, seed):
    """One crop of an image of each size, as fractions. Only the size is read, so a view of one value will do."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        boxes = []
        for width, height in sizes:
            top, left, high, wide = RandomResizedCrop.get_params(torch.empty(1).expand(height, width), scale, RATIO)
            boxes.append([left / width, top / height, wide / width, high / height])
    return torch.tensor(boxes)


def sampled(aspect, scale=SCALE, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return sample_boxes(aspect, scale, RATIO)


@pytest.mark.parametrize("scale", [[0.2, 1.0], [0.08, 1.0]])
def test_boxes_of_photographs_are_distributed_as_torchvisions(photographs, scale):
    sizes = [Image.open(path).size for path in photographs] * 20
    aspect = torch.tensor([width / height for width, height in sizes])
    ours, theirs = described(sampled(aspect, scale, 1), aspect), described(by_torchvision(sizes, scale, 11), aspect)
    for name, mine, other in zip(("area", "shape", "x", "y"), ours, theirs, strict=True):
        assert ks_2samp(mine, other).pvalue > 0.05, name


@pytest.mark.parametrize("size", [(4000, 4000), (4000, 3000), (3000, 4000), (6000, 1500), (1000, 9000)])
def test_boxes_of_one_shape_are_distributed_as_torchvisions(size):
    aspect = torch.full((4000,), size[0] / size[1])
    ours, theirs = (
        described(sampled(aspect, seed=2), aspect),
        described(by_torchvision([size] * 4000, SCALE, 3), aspect),
    )
    for name, mine, other in zip(("area", "shape", "x", "y"), ours, theirs, strict=True):
        if np.ptp(mine) < 1e-3:  # only the fallback fits, up to whole pixels
            assert abs(mine.mean() - other.mean()) < 1e-3
        else:
            assert ks_2samp(mine, other).pvalue > 0.01, name


@given(
    st.lists(st.floats(0.05, 20), min_size=1, max_size=8),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)),
    st.integers(0, 2**31),
)
def test_boxes_are_inside_with_area_and_shape_in_range_or_the_fallback(aspects, scale, ratio, seed):
    scale, ratio, aspect = sorted(scale), sorted(ratio), torch.tensor(aspects)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        box = sample_boxes(aspect, scale, ratio)
    assert (box >= 0).all() and (box[:, :2] + box[:, 2:] <= 1 + 1e-5).all()
    shape = box[:, 2] / box[:, 3] * aspect
    assert ((shape >= ratio[0] * (1 - 1e-4)) & (shape <= ratio[1] * (1 + 1e-4))).all()
    area = box[:, 2] * box[:, 3]
    in_range = (area >= scale[0] * (1 - 1e-4)) & (area <= scale[1] * (1 + 1e-4))
    centered = ((box[:, :2] + box[:, 2:] / 2 - 0.5).abs() < 1e-5).all(dim=1) & (box[:, 2:].amax(dim=1) > 1 - 1e-5)
    assert (in_range | centered).all()


def test_fallback_by_hand():
    """A panorama of 10 : 1 has no room for a fifth of its area at 4 : 3: the largest crop of that shape, centered."""
    box = sampled(torch.tensor([10.0, 0.1]))
    assert box[0].tolist() == pytest.approx([13 / 30, 0, 4 / 30, 1], abs=1e-6)
    assert box[1].tolist() == pytest.approx([0, 13 / 30, 1, 4 / 30], abs=1e-6)  # 3 : 4


def test_crops_of_the_canvas_show_what_pil_crops_of_the_original_show(photographs):
    differences = []
    for number, path in enumerate(photographs[::5]):
        image = Image.open(path).convert("RGB")
        canvas = decode(path, 320)
        box = sampled(torch.tensor([canvas.aspect]), seed=number)
        view = resample(canvas.pixels[None], box, torch.zeros(1, dtype=torch.bool), 224)[0]
        left, top, width, height = (box[0] * torch.tensor([*image.size, *image.size])).tolist()
        corners = (left, top, left + width, top + height)
        expected = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR, box=corners))
        differences.append((255 * view - torch.tensor(expected).permute(2, 0, 1)).abs().mean().item())
    assert np.mean(differences) < 3


def test_views_of_mixed_aspects_follow_each_image():
    views = Views(ViewArguments(), seed=1)
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    both = views.sample_all(images, [0] * 2000, torch.tensor([0.5, 2.0]))
    box = torch.stack([params.box for params in both])  # 2000 x 2 x 4
    for column, aspect in enumerate((0.5, 2.0)):
        ratio = box[:, column, 2] / box[:, column, 3] * aspect
        assert ratio.min() >= 3 / 4 - 1e-5 and ratio.max() <= 4 / 3 + 1e-5
    with pytest.raises(ValueError, match="2 images with 3 aspect ratios"):
        views.sample(images, aspect=torch.ones(3))


def test_share_of_enlarged_crops_against_counting(photographs):
    sizes = [Image.open(path).size for path in photographs] * 10
    aspect = torch.tensor([width / height for width, height in sizes])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = enlarged_share(aspect, torch.tensor(sizes), 224, SCALE, RATIO)
    box = by_torchvision(sizes, SCALE, 5)
    counted = np.mean([w * b[2] * h * b[3] < 224**2 for (w, h), b in zip(sizes, box.tolist(), strict=True)])
    assert ours == pytest.approx(counted, abs=0.03)


@pytest.mark.parametrize("image_size, share", [(256, 71), (400, 14), (512, 0)])
def test_share_of_enlarged_crops_of_squares_by_hand(image_size, share):
    """(224 / S)^2 is a uniform share of the area in [0.2, 1], if no crop is rejected."""
    line = describe_crops(ViewArguments(crop_ratio=[1.0, 1.0]), image_size)
    assert int(line.split(" %")[0].rstrip("%").split("%")[0]) == pytest.approx(share, abs=1)
