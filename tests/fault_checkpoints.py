"""Damaged checkpoints: the newest whole one is taken instead, the damaged one is refused by its path in one line."""

import json
import random
import shutil
import tempfile
from pathlib import Path

from hf_essl.run_folder import checked_checkpoint, newest_whole
from tests.fault_runs import SAVING, count, same_weights, saved_run
from tests.helpers import small_trainer


def damage(newest: Path, draw: random.Random) -> str:
    """Does one thing to one file; says what."""
    name = draw.choice(sorted(path.name for path in newest.iterdir()))
    path = newest / name
    kind = draw.choice(["flip", "cut", "empty", "foreign", "swap", "remove"])
    content = path.read_bytes()
    if kind == "flip":
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :])
    elif kind == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "foreign":
        (newest / f"rng_state_{draw.randrange(9)}.pth").write_bytes(content)
    elif kind == "remove":
        path.unlink()
    else:
        other = (newest.with_name("checkpoint-8") / name).read_bytes()
        path.write_bytes(other if other != content else json.dumps([]).encode())
    return f"{kind} {name}"


def holds(folder: Path, trains: bool) -> bool:
    found, newest = newest_whole(folder), folder / "checkpoint-12"
    try:
        checked_checkpoint(newest)
    except ValueError as error:
        refused = "\n" not in str(error) and str(newest) in str(error)
    else:
        refused = False
    passed = refused and found.path.name == "checkpoint-8" and found.skipped[0].startswith("checkpoint-12 (")
    if passed and trains:
        small_trainer(folder, **SAVING).train(resume_from_checkpoint=True)
        return same_weights(newest / "model.safetensors", saved_run() / "checkpoint-12" / "model.safetensors")
    return passed


def run(number: int) -> tuple[int, int]:
    """One in six is resumed to its end, which must equal that of the undamaged run."""
    draw, root, cases = random.Random(0), Path(tempfile.mkdtemp(prefix="faults-")), []
    for index in range(number):
        folder = shutil.copytree(saved_run(), root / str(index))
        done = damage(folder / "checkpoint-12", draw)
        cases.append((done, lambda at=folder, trains=index % 6 == 0: holds(at, trains)))
    try:
        return count(cases)
    finally:
        shutil.rmtree(root)
