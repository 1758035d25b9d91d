"""Disks that are full, read-only, over a quota or gone: one line with the path and what it needs."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from safetensors import SafetensorError

from hf_essl.common import one_line
from hf_essl.manifest import MANIFEST


class StorageError(OSError):
    """A file could not be written; the message has the path, the need and what is free."""


def try_folder(folder: Path, parents: bool = False) -> None:
    """Creates a folder, with `parents` a chain of them, and writes into it.

    Raises OSError if that fails, and for a checkpoint, which a further file would damage.
    """
    for path in (folder.absolute(), *folder.absolute().parents):
        if re.fullmatch(r"checkpoint-\d+", path.name) and (path / MANIFEST).is_file():
            raise OSError(None, f"{path.name} is a checkpoint, which a further file would damage")
    folder.mkdir(parents=parents, exist_ok=True)
    with TemporaryFile(dir=folder) as file:
        file.write(b"1")


def check_writable(folder: Path) -> None:
    """Tries an output_dir before the work. Raises ValueError if it cannot be written."""
    try:
        try_folder(folder, parents=True)
    except OSError as error:
        raise ValueError(
            f"output_dir {folder} cannot be written: {error.strerror or error}; choose another --output_dir"
        ) from error


def check_space(folder: Path, need: int, what: str) -> None:
    """Raises ValueError if less than `need` bytes are free on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ValueError(
            f"output_dir {folder} has {size(free)} free, and {what} need {size(need)}; free some space, or choose "
            f"another --output_dir"
        )


@contextmanager
def storage_errors(path: Path, need: int, kept: str) -> Iterator[None]:
    """Raises StorageError, in one line, where the block fails to write.

    Args:
        need: bytes that the block writes.
        kept: what is left, such as "checkpoint-4 is whole".
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise their own kinds
        if isinstance(error, StorageError) or not _is_about_storage(error):
            raise
        raise StorageError(
            f"{path} cannot be written: {_reason(error)}; it needs {size(need)}{_free(path)}; {kept}"
        ) from error


def _is_about_storage(error: Exception) -> bool:
    words = ("PytorchStreamWriter", "inline_container", "unexpected pos", "os error", "I/O error", "file write failed")
    return isinstance(error, OSError) or any(word in str(error) for word in words)


def _reason(error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None:  # torch's writer hides the reason behind its own error
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return one_line(error).split("(os error")[0].rpartition("I/O error: ")[2][:200].strip()


def _free(path: Path) -> str:
    place = next((one for one in (path, *path.parents) if one.exists()), None)
    if place is None:
        return ""
    read_only = "" if os.access(place, os.W_OK) else f", {place} is read-only"
    return f", {size(shutil.disk_usage(place).free)} are free{read_only}"


def size(count: int) -> str:
    """Bytes as MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
