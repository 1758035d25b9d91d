import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from hf_essl.data import UnreadableImage
from hf_essl.data import decode as decode_canvas


def decode(image, size):
    return decode_canvas(image, size).pixels


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width, height):
    """Smooth enough that JPEG and its scaled decoding stay close."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(7 * x + 3 * y), np.cos(5 * x - 4 * y), np.sin(6 * y)]
    return Image.fromarray(np.stack([127.5 + 110 * wave for wave in waves], -1).astype(np.uint8))


def color(tensor):
    return tensor[:, 2, 2].tolist()


@pytest.mark.parametrize("width, height", [(100, 60), (60, 100), (301, 150), (33, 47), (400, 20)])
def test_the_whole_image_is_squashed_as_torchvision_resizes(width, height):
    image = photo(width, height)
    canvas = decode_canvas(encoded(image), 48)
    reference = v2.Compose([v2.Resize((48, 48), v2.InterpolationMode.BICUBIC), v2.PILToTensor()])
    difference = (canvas.pixels.int() - reference(image).int()).abs()
    assert difference.float().mean() < 0.5 and difference.max() <= 4  # gray levels
    assert canvas.aspect == width / height


def test_nothing_of_the_image_is_cut():
    image = Image.new("RGB", (90, 30), "red")
    image.paste("lime", (30, 0, 60, 30))
    image.paste("blue", (60, 0, 90, 30))
    canvas = decode(encoded(image), 30)
    assert [canvas[channel, :, 10 * channel + 2 : 10 * channel + 8].min() for channel in range(3)] == [255] * 3
    assert decode_canvas(encoded(image), 30).aspect == 3


def test_aspect_is_that_of_the_upright_image():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees
    assert decode_canvas(encoded(photo(80, 40), "JPEG", exif=exif), 32).aspect == 0.5


@pytest.mark.parametrize("width, height, aspect", [(1601, 400, 4), (400, 1603, 1 / 4)])
def test_aspect_of_a_jpeg_is_that_of_its_reduced_decoding_within_a_percent(width, height, aspect):
    canvas = decode_canvas(encoded(photo(width, height), "JPEG"), 32)
    assert canvas.aspect == pytest.approx(aspect, rel=0.01)


def test_image_of_the_right_size_keeps_its_pixels():
    pixels = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    for same in (pixels, image, encoded(image), {"bytes": encoded(image), "path": "a.png"}):
        assert torch.equal(decode(same, 20), pixels)
    assert decode(image, 20).dtype == torch.uint8
    assert decode(image, 20).is_contiguous()


def test_large_jpeg_is_decoded_at_a_reduction_close_to_the_whole():
    image = photo(800, 640)
    content = encoded(image, "JPEG", quality=95)
    whole = Image.open(io.BytesIO(content))
    whole.load()  # a loaded image is no longer decoded at a reduction
    assert (decode(content, 64).int() - decode(whole, 64).int()).abs().float().mean() < 1


def test_file_and_missing_file(tmp_path):
    photo(40, 40).save(tmp_path / "a.png")
    assert torch.equal(decode(tmp_path / "a.png", 20), decode(photo(40, 40), 20))
    assert torch.equal(decode({"bytes": None, "path": str(tmp_path / "a.png")}, 20), decode(photo(40, 40), 20))
    with pytest.raises(UnreadableImage, match="missing file"):
        decode(tmp_path / "b.png", 20)
    with pytest.raises(UnreadableImage, match="neither bytes nor a path"):
        decode(None, 20)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(kind):
    stored = Image.new("RGB", (64, 64), "red")
    stored.paste("blue", (0, 0, 64, 32))  # blue on top, as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise: the stored top is on the right
    shown = decode(encoded(stored, kind, exif=exif), 32)
    assert shown[2, :, 20:].min() > 200
    assert shown[2, :, :12].max() < 60


def test_pil_image_of_the_caller_is_unchanged():
    image = photo(80, 60)
    exif = image.getexif()
    exif[0x0112] = 3
    before = image.tobytes()
    decode(image, 16)
    assert (image.size, image.tobytes(), image.getexif()[0x0112]) == ((80, 60), before, 3)


@pytest.mark.parametrize(
    "image, options, expected",
    [
        (Image.new("L", (8, 8), 77), {}, [77, 77, 77]),
        (Image.new("1", (8, 8), 1), {}, [255, 255, 255]),
        (Image.new("RGBA", (8, 8), (200, 0, 100, 0)), {}, [255, 255, 255]),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 51)), {}, [255, 204, 204]),  # 20 % red on white
        (Image.new("LA", (8, 8), (0, 51)), {}, [204, 204, 204]),
        (Image.new("I;16", (8, 8), 65535), {}, [255, 255, 255]),
        (Image.new("I;16", (8, 8), 257 * 40), {}, [40, 40, 40]),
        (Image.new("RGB", (8, 8), (9, 8, 7)), {"transparency": (9, 8, 7)}, [255, 255, 255]),
    ],
)
def test_modes_of_png(image, options, expected):
    assert color(decode(encoded(image, "PNG", **options), 8)) == expected


def test_palette_with_and_without_transparency():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert color(decode(encoded(image), 8)) == [10, 200, 30]
    assert color(decode(encoded(image, "PNG", transparency=1), 8)) == [255, 255, 255]
    assert color(decode(encoded(image, "PNG", transparency=bytes([0, 255])), 8)) == [10, 200, 30]


def test_cmyk_jpeg():
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    red, green, blue = color(decode(encoded(cyan, "JPEG", quality=100), 16))
    assert red < 10 and green > 245 and blue > 245


def test_gray_jpeg_and_float_tiff():
    assert color(decode(encoded(Image.new("L", (64, 64), 90), "JPEG", quality=100), 16)) == [90, 90, 90]
    assert color(decode(encoded(Image.new("F", (8, 8), 0.2), "TIFF"), 8)) == [51, 51, 51]
    with pytest.raises(UnreadableImage, match="outside 0 to 1"):
        decode(encoded(Image.new("F", (8, 8), 80.0), "TIFF"), 8)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("kind, options", [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {})])
def test_truncated_file_is_rejected(kind, options, share):
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(pixels), kind, **options)
    for size in (16, 120):  # with and without a reduced decoding
        with pytest.raises(UnreadableImage) as error:
            decode(content[: int(share * len(content))], size)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content, reason", [(b"", "empty file"), (b"hello", "unknown image format")])
def test_not_an_image(content, reason):
    with pytest.raises(UnreadableImage, match=reason):
        decode(content, 16)


def test_decompression_bomb(monkeypatch):
    content = encoded(Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        decode(content, 16)


def test_tensors():
    gray = torch.full((1, 10, 12), 5, dtype=torch.uint8)
    assert torch.equal(decode(gray, 10), torch.full((3, 10, 10), 5, dtype=torch.uint8))
    for wrong in (torch.rand(3, 8, 8), torch.zeros(8, 8, 3, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="pass uint8 3 x H x W"):
            decode(wrong, 8)
