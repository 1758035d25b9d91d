"""Small images on disk whose grey value tells which image it is."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def _png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def _write_image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(value))


def _write_parquet(path, values, labels=None, paths=None):
    """As pandas or pyarrow write it: without the metadata by which `datasets` knows an image column."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": _png(value), "path": paths and paths[i]} for i, value in enumerate(values)]
    columns = {"image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
    if labels is not None:
        columns["label"] = labels
    pq.write_table(pa.table(columns), path)


@pytest.fixture
def heap(tmp_path) -> Path:
    """Ten images without labels: values 0 to 9."""
    for value in range(10):
        _write_image(tmp_path / "heap" / f"{value}.png", value)
    return tmp_path / "heap"


@pytest.fixture
def classes(tmp_path) -> Path:
    """Two classes of ten: ant holds 0 to 9, bee holds 10 to 19."""
    for value in range(20):
        _write_image(tmp_path / "classes" / ("ant" if value < 10 else "bee") / f"{value:02}.png", value)
    return tmp_path / "classes"


@pytest.fixture
def torn(classes) -> Path:
    """`classes` with three broken files: a torn one (3), an empty one (9) and one that is no image (19)."""
    (classes / "ant" / "03.png").write_bytes(_png(3)[:50])
    (classes / "ant" / "09.png").write_bytes(b"")
    (classes / "bee" / "19.png").write_bytes(b"<html>not found</html>")
    return classes


@pytest.fixture(scope="session")
def png():
    """value -> the bytes of a 20 x 20 PNG of that grey value."""
    return _png


@pytest.fixture(scope="session")
def write_image():
    """(path, value) -> writes such a PNG."""
    return _write_image


@pytest.fixture(scope="session")
def write_parquet():
    """(path, values, labels=None, paths=None) -> writes a parquet file of such images."""
    return _write_parquet
