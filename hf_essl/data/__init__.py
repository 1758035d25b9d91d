"""Images: found, decoded to uint8 tensors, and kept or streamed."""

from hf_essl.data.cache import CachedImages
from hf_essl.data.dataset import DecodedImages, ImageDataset, collate, image_count, sample_images
from hf_essl.data.decode import UnreadableImage, decode
from hf_essl.data.disk_images import DiskImages
from hf_essl.data.feed import Feed
from hf_essl.data.load import Images, as_images, load_images
from hf_essl.data.stream import StreamedImages
from hf_essl.data.unreadable import Unreadable, UnreadableLog

__all__ = [
    "CachedImages",
    "DecodedImages",
    "DiskImages",
    "Feed",
    "ImageDataset",
    "Images",
    "StreamedImages",
    "Unreadable",
    "UnreadableImage",
    "UnreadableLog",
    "as_images",
    "collate",
    "decode",
    "image_count",
    "load_images",
    "sample_images",
]
