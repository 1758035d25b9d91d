"""Small images whose gray value says which image it is."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(value):
    """The bytes of a 20 x 20 PNG of this gray value."""
    buffer = io.BytesIO()
    Image.new("L", (20, 20), value).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def write_image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(value))


def write_parquet(path, values, labels=None):
    """As pandas or pyarrow write it, without the metadata by which `datasets` recognizes an image column.

    Bytes among the values are written as they are.
    """
    images = [{"bytes": value if isinstance(value, bytes) else png(value), "path": None} for value in values]
    columns = {"image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
    pq.write_table(pa.table(columns if labels is None else columns | {"label": labels}), path)
