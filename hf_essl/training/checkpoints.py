"""Which checkpoint a run resumes from, what one needs on the disk, and how a failed save ends."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from hf_essl.config import SSLTrainingArguments
from hf_essl.config.optimizers import LARS, SGD
from hf_essl.manifest import has_manifest
from hf_essl.run_folder import checked_checkpoint, newest_whole
from hf_essl.storage import StorageError, storage_errors

logger = logging.getLogger(__name__)


def find_checkpoint(output_dir: Path, wanted: str | bool | None, speaks: bool = True) -> Path | None:
    """The checkpoint to resume from: True is the newest whole one, text the path of one; None for a new run.

    With `speaks` it says which newer ones are passed over, and why. Raises ValueError if it is not whole.
    """
    if not wanted:
        return None
    skipped: list[str] = []
    if wanted is True:
        checkpoint, skipped = newest_whole(output_dir)
    else:
        checkpoint = checked_checkpoint(wanted)
    if speaks and skipped:
        logger.warning("resuming from %s; newer ones are not whole: %s", checkpoint, ", ".join(skipped))
    if speaks and not has_manifest(checkpoint):
        logger.warning("%s has no manifest (an earlier version wrote it), so its files are not verified", checkpoint)
    return checkpoint


def checkpoint_bytes(model: nn.Module, args: SSLTrainingArguments) -> int:
    """About what a checkpoint takes: weights, buffers and the optimizer's state."""
    weights = sum(value.nbytes for value in model.state_dict().values())
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    return weights + trained * (1 if args.optim in (SGD, LARS) else 2)


@contextmanager
def saving(folder: Path, need: int) -> Iterator[None]:
    """The block saves a checkpoint into `folder`. If it cannot, what it wrote is deleted.

    Raises:
        StorageError: in one line, with what is left to resume from.
    """
    run = folder.parent
    if not run.is_dir():
        raise StorageError(f"output_dir {run} has vanished; it was deleted, or its disk is no longer there")
    if folder.exists():
        shutil.rmtree(folder)  # a damaged one, or one of the steps after an earlier checkpoint that was resumed
    try:
        with storage_errors(folder, need, _kept(run, folder)):
            yield
    except StorageError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _kept(run: Path, folder: Path) -> str:
    others = sorted((p for p in run.glob("checkpoint-*") if p != folder), key=lambda p: int(p.name.rpartition("-")[2]))
    if not others:
        return "no earlier checkpoint exists"
    return f"{others[-1]} is kept: free some space, then resume with --resume_from_checkpoint true"
