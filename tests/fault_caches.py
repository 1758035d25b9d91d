"""Damaged disk caches: whatever byte of whatever file is wrong, the images that are read are those of the source."""

import random
import shutil
import tempfile
from pathlib import Path

import torch

from hf_essl.data import NO_LABEL, DecodedImages
from hf_essl.data.disk_cache import disk_cache
from tests.fault_runs import count, silence

COUNT, SIZE = 40, 8


class Drawn:
    """Images whose pixels are a function of their index."""

    name, classes, fingerprint = "drawn", None, "forty-drawn-images"

    def __len__(self) -> int:
        return COUNT

    def read(self, index: int):
        pixels = torch.randint(
            0, 256, (3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(index)
        )
        return pixels, NO_LABEL

    def read_labels(self):
        return None


def open_cache(root: Path):
    return disk_cache(DecodedImages(Drawn(), SIZE), root, 0.5)


def damage(folder: Path, draw: random.Random) -> str:
    path = draw.choice(sorted(folder.iterdir()))
    kind, content = draw.choice(["flip", "flip", "cut", "empty", "remove", "json"]), path.read_bytes()
    if kind == "flip":
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :])
    elif kind == "remove":
        path.unlink()
    elif kind == "json":
        path = folder / "cache.json"
        path.write_text(draw.choice(["{}", "[]", "null", '{"unreadable": [1]}', '{"count": 40, "unreadable": {}}']))
    else:
        path.write_bytes(content[: draw.randrange(len(content))] if kind == "cut" else b"")
    return f"{kind} {path.name}"


def holds(root: Path) -> bool:
    read = open_cache(root).__getitems__(range(COUNT))["image"]
    return torch.equal(read, torch.stack([Drawn().read(index)[0] for index in range(COUNT)]))


def run(number: int) -> tuple[int, int]:
    draw, root, cases = random.Random(0), Path(tempfile.mkdtemp(prefix="faults-")), []
    for index in range(number):
        with silence():
            folder = open_cache(root / str(index)).path.parent
        cases.append((damage(folder, draw), lambda at=root / str(index): holds(at)))
    try:
        return count(cases)
    finally:
        shutil.rmtree(root)
