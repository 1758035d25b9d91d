"""Disks that fail while a checkpoint is written: one line with path and need, and the checkpoint before is whole."""

import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from hf_essl.run_folder import checkpoints, what_is_wrong
from hf_essl.storage import StorageError
from tests.fault_runs import SAVING, count
from tests.helpers import small_trainer
from tests.test_storage import At, failing

ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO]
WRITERS = ["safetensors.torch.save_file", "torch.save", "hf_essl.manifest.write_text"]


def holds(folder: Path, writer: str, error: int) -> bool:
    fault = patch(writer, failing(error))
    return one_line(folder, fault.start, fault.stop, os.strerror(error))


def vanishes(folder: Path) -> bool:
    try:
        small_trainer(folder, callbacks=[At(6, lambda: shutil.rmtree(folder))], **SAVING).train()
    except StorageError as error:
        return f"output_dir {folder} has vanished" in str(error) and "\n" not in str(error)
    return False


def one_line(folder: Path, start: Callable, stop: Callable, reason: str) -> bool:
    try:
        small_trainer(folder, callbacks=[At(6, start)], **SAVING).train()
    except StorageError as found:
        line = str(found)
    else:
        return False
    finally:
        stop()
    said = all(text in line for text in (str(folder / "checkpoint-8"), "it needs", reason)) and "\n" not in line
    return said and checkpoints(folder) == [folder / "checkpoint-4"] and what_is_wrong(folder / "checkpoint-4") is None


def run(number: int) -> tuple[int, int]:
    root, cases = Path(tempfile.mkdtemp(prefix="faults-")), [("vanished", lambda: vanishes(root / "vanished"))]
    for writer, error in itertools.product(WRITERS, ERRORS):
        folder = root / f"{writer}-{error}"
        cases.append((f"{writer} {os.strerror(error)}", lambda *, f=folder, w=writer, e=error: holds(f, w, e)))
    try:
        return count(cases[:number])
    finally:
        shutil.rmtree(root)
