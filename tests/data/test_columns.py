"""Images as datasets have them: columns of every make, arrays, streams, transforms, and more than 8 bits."""

import base64
import io
import logging
import struct
import zlib
from itertools import islice

import datasets
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image, PngImagePlugin
from torch.utils.data import DataLoader, IterableDataset

from hf_essl.config import DataArguments
from hf_essl.data import UnreadableImage, as_images, collate, decode, load_images
from tests.data.images import png, write_image

ARGS = DataArguments(image_size=16)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.WARNING, "hf_essl.data")
    return lambda text="": [one for one in caplog.messages if text in one]


def gray(value):
    return Image.new("RGB", (20, 20), (value,) * 3)


def values(dataset):
    return [int(dataset[index]["image"][0, 0, 0]) for index in range(len(dataset))]


def streamed(source, count):
    """The gray values of the first `count` images of a source, in batches of five."""
    loader = DataLoader(as_images(source, ARGS), 5, collate_fn=collate)
    return sorted(int(v) for batch in islice(loader, count // 5) for v in batch["image"][:, 0, 0, 0])


class TestColumns:
    @pytest.mark.parametrize("form", ["bytes", "path", "url", "memory", "base64", "data", "list"])
    def test_bytes_paths_urls_and_base64(self, tmp_path, form):
        def cell(value):
            write_image(tmp_path / f"{value}.png", value)
            with MemoryFileSystem().open(f"/{value}.png", "wb") as file:
                file.write(png(value))
            return {
                "bytes": png(value),
                "path": str(tmp_path / f"{value}.png"),
                "url": (tmp_path / f"{value}.png").as_uri(),
                "memory": f"memory://{value}.png",
                "base64": base64.b64encode(png(value)).decode(),
                "data": f"data:image/png;base64,{base64.b64encode(png(value)).decode()}",
                "list": np.frombuffer(png(value), np.uint8),
            }[form]

        rows = datasets.Dataset.from_dict({"image": [cell(value) for value in range(5)], "label": [0, 300, 2, 3, 4]})
        images = as_images(rows, ARGS)
        assert values(images) == list(range(5)) and images.labels.tolist() == [0, 300, 2, 3, 4]
        assert streamed(rows.to_iterable_dataset(), 5) == list(range(5))

    def test_text_that_is_no_image_is_unreadable_and_short_in_the_log(self):
        for text in ("no/such.png", "no/such" * 30, base64.b64encode(bytes(3000)).decode(), "data:image/png;base64,!"):
            rows = datasets.Dataset.from_dict({"image": [text, base64.b64encode(png(1)).decode()]})
            (one,) = as_images(rows, ARGS)[0]["unreadable"]
            assert len(str(one)) < 400

    @pytest.mark.parametrize("shape", [(20, 22, 3), (20, 22), (20, 22, 1)])
    @pytest.mark.parametrize("kind", ["lists", "array"])
    def test_arrays(self, shape, kind):
        arrays = [np.full(shape, value, np.uint8) for value in range(5)]
        features = None
        if kind == "array":
            kinds = {2: datasets.Array2D, 3: datasets.Array3D}
            features = datasets.Features(image=kinds[len(shape)](shape, "uint8"))
        rows = datasets.Dataset.from_dict({"image": arrays}, features=features)
        assert values(as_images(rows, ARGS)) == streamed(rows.to_iterable_dataset(), 5) == list(range(5))

    @pytest.mark.parametrize("kind", ["float32", "int64", "uint16"])
    def test_arrays_of_other_types_are_named(self, kind):
        rows = datasets.Dataset.from_dict({"image": [np.zeros((4, 4, 3), kind)]})
        with pytest.raises(
            ValueError, match=f"contains .*{kind}.*; it must be images, bytes, paths or arrays of uint8"
        ):
            as_images(rows, ARGS)

    @pytest.mark.parametrize(
        "cell", [np.zeros((4, 4, 3), np.float32), np.zeros((3, 5, 5), np.uint8), np.zeros(4), 7, [1, 2], {"a": 1}]
    )
    def test_objects_that_are_no_images_are_named(self, cell):
        name = str(cell.dtype) if isinstance(cell, np.ndarray) and cell.ndim > 1 else type(cell).__name__
        with pytest.raises(ValueError, match=f"an image is a {name}"):
            as_images([(cell, 0), (cell, 1)], ARGS)[0]


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_arrays_decode_like_pillow(channels):
    random = np.random.default_rng(0)
    array = random.integers(0, 256, (24, 30) if channels is None else (24, 30, channels), dtype=np.uint8)
    image = Image.fromarray(array[..., 0] if channels == 1 else array)
    assert torch.equal(decode(array, 16).pixels, decode(image, 16).pixels)


class Numbers(IterableDataset):
    """A torch stream of gray images, in one of several forms."""

    def __init__(self, form):
        self.form = form

    def __iter__(self):
        for value in range(10):
            yield {"bare": gray(value), "pair": (gray(value), 0), "dict": {"image": gray(value)}}[self.form]


def generate():
    for value in range(10):
        yield {"image": gray(value), "label": value % 2}


def plain():
    return datasets.Dataset.from_dict({"image": [gray(value) for value in range(10)], "label": list(range(10))})


STREAMS = {
    "a generator without features": lambda: datasets.IterableDataset.from_generator(generate),
    "mapped to PIL": lambda: plain().to_iterable_dataset().map(lambda row: {"image": row["image"].rotate(90)}),
    "a mapped generator": lambda: datasets.IterableDataset.from_generator(generate).map(lambda row: row),
    "filtered": lambda: plain().to_iterable_dataset().filter(lambda row: True),
    "several shards": lambda: plain().to_iterable_dataset(num_shards=5),
    "numpy format": lambda: plain().to_iterable_dataset().with_format("numpy"),
    "torch format": lambda: plain().to_iterable_dataset().with_format("torch"),
    "generated arrays": lambda: datasets.IterableDataset.from_generator(
        lambda: ({"image": np.full((20, 20, 3), value, np.uint8)} for value in range(10))
    ),
    "torch, bare": lambda: Numbers("bare"),
    "torch, pairs": lambda: Numbers("pair"),
    "torch, dicts": lambda: Numbers("dict"),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_streams(kind, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)
    assert streamed(STREAMS[kind](), 20) == sorted([*range(10), *range(10)])  # two passes


def test_a_stream_without_the_column():
    with pytest.raises(ValueError, match="image_column is image; the columns of stream are picture"):
        as_images(datasets.IterableDataset.from_generator(lambda: iter([{"picture": gray(0)}])), ARGS)


class TestTransforms:
    def test_a_transform_is_applied(self):
        def brighter(batch):
            return {"image": [Image.eval(image, lambda value: value + 100) for image in batch["image"]]}

        images = as_images(plain().with_transform(brighter), ARGS)
        assert values(images) == [value + 100 for value in range(10)]
        assert images.labels.tolist() == [images[index]["label"] for index in range(10)] == list(range(10))

    def test_a_transform_to_something_else_is_refused(self):
        def tensors(name):
            return lambda batch: {name: [torch.rand(3, 4, 4) for _ in batch["image"]]}

        with pytest.raises(ValueError, match="image_column is image; the items of dataset have pixels"):
            as_images(plain().with_transform(tensors("pixels")), ARGS)[0]
        with pytest.raises(ValueError, match=r"an image is a torch\.float32 tensor"):
            as_images(plain().with_transform(tensors("image")), ARGS)[0]


class TestDepth:
    def folder(self, root, *arrays):
        for index, array in enumerate(arrays):
            root.mkdir(exist_ok=True)
            Image.fromarray(array).save(root / f"{index:02}.{'tif' if array.dtype == np.float32 else 'png'}")
        return DataArguments(dataset=str(root), image_size=16)

    def test_12_bits_in_16_bit_files_are_warned_of_once_and_scaled(self, tmp_path, lines):
        ramp = np.arange(400, dtype=np.uint16).reshape(20, 20) * 10
        args = self.folder(tmp_path / "scans", *(ramp + i for i in range(20)))
        load_images(args)
        assert lines() == [
            "scans: 16 of the 16 images looked at have 16 bits and values 0 to 4008 of 65535: they train dark; "
            "set white_level, such as 4095"
        ]
        args.white_level = 4095
        uniform = np.full((20, 20), 819, np.uint16)  # a fifth of 4095
        assert values(load_images(self.folder(tmp_path / "one", uniform)).train) == [3]
        assert values(load_images(args).train)[0] < 5 and len(lines()) == 2
        args = self.folder(tmp_path / "one", uniform)
        for options in ({}, {"streaming": True}, {"cache": "memory"}):
            images = load_images(DataArguments(**{**vars(args), "white_level": 4095, **options})).train
            assert int(next(iter(images))["image"].max()) == 51
        assert len(lines()) == 2

    def test_dark_colors_of_16_bits(self, tmp_path, lines):
        """Pillow cannot write them: the file is made by hand from the PNG specification."""

        def chunk(kind, content):
            return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
        pixels = (b"\0" + struct.pack(">H", 4000) * 24) * 8
        content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "a.png").write_bytes(content)
        assert values(load_images(DataArguments(dataset=str(tmp_path / "a"), image_size=16)).train) == [4000 // 256]
        assert lines(
            "1 of the 1 images looked at have 16 bits per color; Pillow keeps the upper 8, with values up to 15"
        )

    def test_full_16_bits_and_8_bits_are_not_warned_of(self, tmp_path, lines):
        load_images(self.folder(tmp_path / "a", np.full((8, 8), 40000, np.uint16)))
        load_images(self.folder(tmp_path / "b", np.full((8, 8), 3, np.uint8)))
        assert lines() == []

    def test_values_above_the_white_level_are_unreadable(self, tmp_path):
        args = self.folder(tmp_path / "a", np.full((8, 8), 4096, np.uint16), np.full((8, 8), 4095, np.uint16))
        args.white_level = 4095
        (one,) = load_images(args).train[0]["unreadable"]
        assert "values 4096 to 4096 of mode I;16, outside 0 to 4095 (white_level)" in str(one)

    @pytest.mark.parametrize("spoiled", [np.nan, np.inf, -np.inf])
    def test_floats_that_are_not_finite_are_unreadable(self, tmp_path, spoiled):
        for largest in (1, 3000):
            array = np.linspace(0, largest, 400, dtype=np.float32).reshape(20, 20)
            array[3, 3] = spoiled
            with pytest.raises(UnreadableImage, match="values that are not finite, of mode F"):
                decode(Image.fromarray(array), 16)


@pytest.mark.parametrize("compressed", [False, True])
def test_png_with_a_large_text(compressed):
    text = PngImagePlugin.PngInfo()
    text.add_text("settings", "0123456789" * 300_000, zip=compressed)
    buffer = io.BytesIO()
    gray(70).save(buffer, "PNG", pnginfo=text)
    assert decode(buffer.getvalue(), 16).pixels.unique().tolist() == [70]
