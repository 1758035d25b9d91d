"""Which checkpoint a run resumes from, what one needs on the disk, and how a failed save ends."""

import itertools
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from hf_essl.config import SSLTrainingArguments
from hf_essl.config.optimizers import LARS, SGD
from hf_essl.manifest import has_manifest
from hf_essl.run_folder import checked_checkpoint, checkpoints, newest_whole, step_of, what_is_wrong
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


def set_aside(run: Path, resumed: Path) -> None:
    """Renames the whole checkpoints of the steps after the resumed one, so that two trainings do not mix in a folder.

    It names them. If the resumed checkpoint is in another folder, those of all steps are renamed.
    """
    found, is_here = checkpoints(run), resumed.resolve().parent == run.resolve()
    later = [folder for folder in found if not is_here or step_of(folder) > step_of(resumed)]
    moved = []
    for folder in later:
        if what_is_wrong(folder) is None:
            target = next(path for path in _names(run, folder) if not path.exists())
            moved.append(f"{folder.name} is now {folder.rename(target).name}")
    if moved:
        logger.warning(
            "%s was trained beyond %s before; these checkpoints are kept: %s", run, resumed, ", ".join(moved)
        )


def _names(run: Path, folder: Path) -> Iterator[Path]:
    return (run / f"abandoned{number or ''}-{folder.name}" for number in itertools.count())


def rotate(run: Path, newest: Path, limit: int | None, best: str | None) -> None:
    """Deletes the checkpoints above `save_total_limit`, the oldest first; the one just written and the best stay."""
    kept = {newest} | ({Path(best)} if best else set())
    others = [folder for folder in checkpoints(run) if folder not in kept]
    others.sort(key=lambda folder: (step_of(folder) > step_of(newest), -step_of(folder)))  # later ones are damaged
    for folder in others[max(limit - len(kept), 0) :] if limit else ():
        shutil.rmtree(folder, ignore_errors=True)


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
        shutil.rmtree(folder)  # a damaged one; `set_aside` has renamed the others
    try:
        with storage_errors(folder, need, _kept(run, folder)):
            yield
    except StorageError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _kept(run: Path, folder: Path) -> str:
    others = [path for path in checkpoints(run) if path != folder]
    if not others:
        return "no earlier checkpoint exists"
    return f"{others[0]} is kept: free some space, then resume with --resume_from_checkpoint true"
