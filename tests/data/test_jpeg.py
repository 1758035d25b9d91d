"""JPEGs decoded on the device: here by torchvision on the CPU, which takes the same way; see also test_gpu.py."""

import io

import pytest
import torch
from PIL import Image

from hf_essl.arguments import DataArguments
from hf_essl.data import DecodedImages, as_images, decode, jpeg
from hf_essl.data.feed import feed_of
from hf_essl.data.jpeg import EncodedImages, collate_encoded, decode_batch, jpeg_bytes
from tests.data.test_decode import encoded, photo

CPU = torch.device("cpu")


class Files:
    """Encoded images in a list, labelled by their position."""

    name, classes, fingerprint = "files", None, None

    def __init__(self, contents):
        self.contents = contents

    def __len__(self):
        return len(self.contents)

    def read(self, index):
        return {"bytes": self.contents[index], "path": f"{index}.jpg"}, index


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photo(80, 60), "JPEG", exif=exif)


JPEG = encoded(photo(160, 120), "JPEG", quality=95)
OTHERS = {
    "png": encoded(photo(40, 30)),
    "cmyk": encoded(photo(40, 30).convert("CMYK"), "JPEG"),
    "turned": turned(),
    "torn": JPEG[: len(JPEG) // 2],
    "empty": b"",
    "text": b"\xff\xd8 no picture \xff\xd9",
}


def batch_of(contents, size=32):
    images = DecodedImages(Files(contents), size)
    samples = [EncodedImages(images)[index] for index in range(len(images))]
    return images, collate_encoded(samples)


def test_a_batch_is_what_decoding_gives():
    kinds = [JPEG, encoded(photo(90, 140), "JPEG", quality=95), encoded(photo(50, 50).convert("L"), "JPEG")]
    images, batch = batch_of(kinds)
    assert [image.dtype for image in batch["image"]] == [torch.uint8] * 3
    assert [image.ndim for image in batch["image"]] == [1, 1, 1]
    done = decode_batch(batch, images, CPU)
    assert done["image"].shape == (3, 3, 32, 32) and done["label"].tolist() == [0, 1, 2]
    assert set(done) == {"image", "label", "unreadable"}
    for ours, content in zip(done["image"], kinds, strict=True):
        difference = (ours.int() - decode(content, 32).int()).abs().float()
        assert difference.mean() < 1.5  # grey levels: offsets are rounded to a pixel, and no reduction while decoding


@pytest.mark.parametrize("kind", ["png", "cmyk", "turned"])
def test_what_the_decoder_would_get_wrong_is_decoded_by_the_worker(kind):
    assert jpeg_bytes(OTHERS[kind]) is None and jpeg_bytes(JPEG) == JPEG
    images, batch = batch_of([JPEG, OTHERS[kind]])
    assert torch.equal(decode_batch(batch, images, CPU)["image"][1], decode(OTHERS[kind], 32))


@pytest.mark.parametrize("kind", ["torn", "empty", "text"])
def test_unreadable_images_are_replaced_and_reported(kind):
    images, batch = batch_of([OTHERS[kind], JPEG])
    done = decode_batch(batch, images, CPU)
    assert done["label"].tolist() == [1, 1] and [one.name for one in done["unreadable"]] == ["0.jpg"]


def test_where_the_decoder_fails_the_dataset_decodes(monkeypatch):
    other = encoded(photo(60, 60), "JPEG")
    images, batch = batch_of([JPEG, other])
    expected = decode_batch(batch, images, CPU)["image"][0]
    whole = jpeg.decode_jpeg

    def fails(contents, mode, device):
        if any(len(content) == len(other) for content in contents):
            raise RuntimeError("nvjpeg: bad image")
        return whole(contents, mode, device)

    monkeypatch.setattr(jpeg, "decode_jpeg", fails)
    done = decode_batch(batch, images, CPU)
    assert torch.equal(done["image"][0], expected) and torch.equal(done["image"][1], decode(other, 32))


def test_images_of_the_size_keep_their_pixels_and_decoded_ones_pass():
    pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    assert jpeg_bytes(pixels) is None and jpeg_bytes(Image.new("RGB", (4, 4))) is None
    exact = encoded(photo(32, 32), "JPEG")
    images, batch = batch_of([exact])
    whole = torch.from_numpy(__import__("numpy").array(Image.open(io.BytesIO(exact)))).permute(2, 0, 1)
    assert (decode_batch(batch, images, CPU)["image"][0].int() - whole.int()).abs().max() <= 2


def test_mistakes_are_told(heap):
    args = DataArguments(jpeg_decoder="gpu", image_size=16)
    with pytest.raises(ValueError, match="the device is cpu, which decodes none; set jpeg_decoder: cpu"):
        feed_of(as_images(str(heap), args), args, CPU)
    with pytest.raises(ValueError, match="photo-patches is no set of files; set jpeg_decoder: cpu"):
        feed_of(as_images("photo-patches", args), args, CPU)
    with pytest.raises(ValueError, match="jpeg_decoder is gpu with cache: disk, which is filled by the CPU"):
        DataArguments(jpeg_decoder="gpu", cache="disk").check()
    with pytest.raises(ValueError, match="jpeg_decoder is gpu with streaming: true"):
        DataArguments(jpeg_decoder="gpu", streaming=True).check()
