"""One run per folder: a lock that the system releases when the process dies."""

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".lock"
_held: dict[tuple[int, Path], int] = {}  # by process and folder: how often this process has entered


@contextmanager
def run_lock(folder: Path, name: str = "output_dir") -> Iterator[None]:
    """Holds the folder of a run, or another one; the process that holds it may enter again.

    It is a POSIX record lock: unlike flock, forked workers of a loader do not inherit it.

    Raises:
        ValueError: if another process holds it, with its number and host, and `name`, the option to change.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = (os.getpid(), folder.resolve())
    if fcntl is None or _held.get(key):
        _held[key] = _held.get(key, 0) + 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(descriptor, folder, name)
        _held[key] = 1
        yield
    finally:
        _held.pop(key, None)
        os.close(descriptor)  # releases it


def _acquire(descriptor: int, folder: Path, name: str) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise ValueError(
            f"{name} {folder} is in use by {_holder(descriptor)}; wait for it, stop it, or choose another --{name}"
        ) from None
    except OSError as error:  # a file system without locks
        logger.warning("%s %s cannot be locked (%s); run nothing else in it", name, folder, error.strerror)
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode(), 0)


def _holder(descriptor: int) -> str:
    with suppress(ValueError, KeyError, TypeError):
        facts = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {facts['process']} on {facts['host']}"
    return "another process"
