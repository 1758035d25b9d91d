"""The center crop of evaluation images, against numbers by hand and torchvision's own crops of the originals."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode

from hf_essl.views.crops import canvas_size, center_boxes, describe_center_crop
from hf_essl.views.resample import resample


@pytest.mark.parametrize(
    ("width", "height", "crop_pct", "box"),
    [
        (375, 375, 0.875, [0.0625, 0.0625, 0.875, 0.875]),
        (500, 375, 0.875, [0.171875, 0.0625, 0.65625, 0.875]),  # 328.125 of 375 px: 85.9375 to 414.0625 of 500
        (375, 500, 0.875, [0.0625, 0.171875, 0.875, 0.65625]),
        (800, 400, 1.0, [0.25, 0.0, 0.5, 1.0]),
        (400, 1200, 0.5, [0.25, 5 / 12, 0.5, 1 / 6]),
    ],
)
def test_boxes_by_hand(width, height, crop_pct, box):
    found = center_boxes(torch.tensor([width / height]), crop_pct)
    torch.testing.assert_close(found, torch.tensor([box]), rtol=0, atol=1e-6)


def test_whole_pixels_by_hand():
    """500 x 375 resized to 341 x 256; the crop of 224 starts at column round(58.5) = 58 and row 16."""
    (box,) = center_boxes(torch.tensor([500 / 375]), 0.875, 224).tolist()
    assert box == pytest.approx([58 / 341, 16 / 256, 224 / 341, 224 / 256])
    (box,) = center_boxes(torch.tensor([333 / 500]), 0.875, 96).tolist()  # 109 x 163; margins 6.5 and 33.5
    assert box == pytest.approx([6 / 109, 34 / 163, 96 / 109, 96 / 163])
    (box,) = center_boxes(torch.tensor([1.5]), 1.0, 64).tolist()
    assert box == pytest.approx([16 / 96, 0, 64 / 96, 1])


@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    crop_pct=st.floats(0.05, 1),
    resolution=st.none() | st.integers(8, 512),
)
def test_a_box_is_a_centered_square_inside_the_image(width, height, crop_pct, resolution):
    aspect = torch.tensor([width / height])
    left, top, wide, high = center_boxes(aspect, crop_pct, resolution).double()[0].tolist()
    pixel = 0 if resolution is None else crop_pct / resolution  # of the resized image, as a share of the short side
    short = min(width, height)
    assert min(left, top) >= -1e-6 and max(left + wide, top + high) <= 1 + 1e-6
    for start, size, side in ((left, wide, width), (top, high, height)):
        relative = side / short
        assert size * relative == pytest.approx(crop_pct, abs=(1e-5 + 2 * pixel) * relative)
        assert (2 * start + size - 1) * relative == pytest.approx(0, abs=1e-5 * relative + pixel * (1 + relative))


def canvas(picture, size):
    """The whole picture, squashed: uint8 1 x 3 x size x size."""
    squashed = picture.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return torch.from_numpy(np.array(squashed)).permute(2, 0, 1)[None].contiguous()


@pytest.mark.parametrize("resolution", [96, 224])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
@pytest.mark.skipif("HF_ESSL_IMAGENETTE" not in os.environ, reason="HF_ESSL_IMAGENETTE names no folder of Imagenette")
def test_the_pixels_are_torchvisions(crop_pct, resolution):
    folder = Path(os.environ["HF_ESSL_IMAGENETTE"]).parent / "mixed"
    if not folder.is_dir():
        pytest.skip("there are no photographs of mixed aspect ratio next to Imagenette")
    resize = transforms.Resize(int(resolution / crop_pct), InterpolationMode.BILINEAR)
    reference = transforms.Compose([resize, transforms.CenterCrop(resolution), transforms.ToTensor()])
    differences = []
    for path in sorted(folder.iterdir())[::10]:
        picture = Image.open(path).convert("RGB")
        box = center_boxes(torch.tensor([picture.width / picture.height]), crop_pct, resolution)
        found = resample(canvas(picture, canvas_size(resolution)), box, torch.zeros(1, dtype=torch.bool), resolution)
        differences.append(255 * (found[0] - reference(picture)).abs().mean().item())
    assert len(differences) == 30
    assert np.mean(differences) < 1.2 and max(differences) < 4


def test_in_words():
    assert describe_center_crop(224, 0.875) == "224 px, center crop of 0.875 of the short side"
    assert describe_center_crop(96, 1.0) == "96 px, whole center square"
