"""`jpeg_decoder: gpu`: workers hand over the bytes of JPEGs, and the accelerator decodes a batch of them (nvJPEG)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as F

from hf_essl.data.dataset import DecodedImages, ImageDataset
from hf_essl.data.decode import UnreadableImage, encoded_bytes

START, END = b"\xff\xd8", b"\xff\xd9"


class EncodedImages(Dataset):
    """The images of a dataset, JPEGs as they are stored: samples as ever, but of a uint8 vector and with an `index`.

    What nvJPEG would not give whole and upright (another format, CMYK, a turned or a torn file) is decoded here, and
    the dataset's own way with unreadable images is kept.
    """

    def __init__(self, images: DecodedImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            image, label = self.images.source.read(index)
            content = jpeg_bytes(image)
        except (UnreadableImage, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            content = None
        if content is None:
            return self.images[index]
        sample = {"image": torch.from_numpy(np.frombuffer(content, np.uint8).copy()), "unreadable": [], "index": index}
        return sample if label is None else sample | {"label": label}


def jpeg_bytes(image: Any) -> bytes | None:
    """The bytes of a whole, upright JPEG in RGB or grey; None for any other image, and for one decoded already."""
    if isinstance(image, (Tensor, Image.Image)):
        return None
    content = encoded_bytes(image)
    if not (content.startswith(START) and content.endswith(END)):
        return None
    with Image.open(io.BytesIO(content)) as opened:  # the header alone
        upright = opened.getexif().get(ExifTags.Base.Orientation, 1) == 1
        return content if opened.format == "JPEG" and opened.mode in ("RGB", "L") and upright else None


def collate_encoded(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples to a batch as `collate` makes it, but `image` is a list of encoded and of decoded images."""
    batch: dict[str, Any] = {"image": [sample["image"] for sample in samples]}
    batch["index"] = [sample.get("index") for sample in samples]
    if "label" in samples[0]:
        batch["label"] = torch.tensor([sample["label"] for sample in samples], dtype=torch.int64)
    batch["unreadable"] = [one for sample in samples for one in sample["unreadable"]]
    return batch


def decode_batch(batch: dict[str, Any], images: DecodedImages, device: torch.device) -> dict[str, Any]:
    """A batch of `collate_encoded` as `collate` makes it, its images on the device: uint8 B x 3 x S x S.

    Where the decoder fails on an image, the dataset decodes it, or stands another in for it, here and now.
    """
    size, pictures = images.image_size, list(batch["image"])
    encoded = [i for i, picture in enumerate(pictures) if picture.ndim == 1]
    unreadable = list(batch["unreadable"])
    try:
        decoded = dict(zip(encoded, decode_jpegs([pictures[i] for i in encoded], size, device), strict=True))
    except RuntimeError:
        decoded = {}
        for i in encoded:
            try:
                decoded[i] = decode_jpegs([pictures[i]], size, device)[0]
            except RuntimeError:
                sample = images[batch["index"][i]]
                decoded[i], unreadable = sample["image"], unreadable + sample["unreadable"]
    stacked = torch.stack([decoded.get(i, whole).to(device, non_blocking=True) for i, whole in enumerate(pictures)])
    facts = {key: value for key, value in batch.items() if key != "index"}
    return {**facts, "image": stacked, "unreadable": unreadable}


def decode_jpegs(encoded: list[Tensor], size: int, device: torch.device) -> list[Tensor]:
    """The centre square of each JPEG at `size` pixels, uint8 3 x size x size on the device, as `decode` gives it up to
    rounding. Raises RuntimeError where one of them cannot be decoded."""
    if not encoded:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision 0.29 announces the end of its decoders
        pictures = decode_jpeg(encoded, ImageReadMode.RGB, device=device)
    return [_square(picture, size) for picture in pictures]


def require_gpu_decoder(images: ImageDataset, device: torch.device) -> DecodedImages:
    """The same images. Raises ValueError where the device cannot decode JPEGs, and for images decoded already."""
    if not isinstance(images, DecodedImages):
        raise ValueError(f"jpeg_decoder is gpu, but {images.name} is no set of files; set jpeg_decoder: cpu")
    if device.type != "cuda":
        raise ValueError(f"jpeg_decoder is gpu, and the device is {device}, which decodes none; set jpeg_decoder: cpu")
    probe = io.BytesIO()
    Image.new("RGB", (16, 16)).save(probe, "JPEG")
    try:
        decode_jpegs([torch.frombuffer(bytearray(probe.getvalue()), dtype=torch.uint8)], 16, device)
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"jpeg_decoder is gpu; torchvision cannot ({error}); set jpeg_decoder: cpu") from error
    return images


def _square(picture: Tensor, size: int) -> Tensor:
    height, width = picture.shape[-2:]
    side = min(height, width)
    if (height, width) == (size, size):
        return picture
    return F.resized_crop(
        picture,
        (height - side) // 2,
        (width - side) // 2,
        *(side, side),
        [size, size],
        interpolation=F.InterpolationMode.BICUBIC,
        antialias=True,
    )
