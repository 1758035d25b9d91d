"""Images: found, decoded to uint8 tensors, and cached or streamed."""

from hf_essl.data.cache import CachedImages
from hf_essl.data.dataset import DecodedImages, Feed, ImageDataset, collate, image_count, sample_images
from hf_essl.data.decode import Unreadable, UnreadableImage, UnreadableLog, decode
from hf_essl.data.disk_cache import DiskImages
from hf_essl.data.labels import NO_LABEL
from hf_essl.data.load import Images, as_images, count_training_images, load_images
from hf_essl.data.stream import StreamedImages

__all__ = [
    "NO_LABEL", "CachedImages", "DecodedImages", "DiskImages", "Feed", "ImageDataset", "Images", "StreamedImages",
    "Unreadable", "UnreadableImage", "UnreadableLog", "as_images", "collate", "count_training_images", "decode",
    "image_count", "load_images", "sample_images",
]  # fmt: skip
