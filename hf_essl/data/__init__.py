"""Images: found, decoded to uint8 tensors, and kept or streamed."""

from .cache import CachedImages
from .dataset import DecodedImages, ImageDataset, collate
from .decode import UnreadableImage, decode
from .load import Images, as_images, load_images
from .stream import StreamedImages
from .unreadable import Unreadable, UnreadableLog

__all__ = [
    "CachedImages",
    "DecodedImages",
    "ImageDataset",
    "Images",
    "StreamedImages",
    "Unreadable",
    "UnreadableImage",
    "UnreadableLog",
    "as_images",
    "collate",
    "decode",
    "load_images",
]
