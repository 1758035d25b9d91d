"""The manifest of a checkpoint: which files it has, with size and hash. It is written last, so a whole folder has one.

{"format": 1, "step": 30, "settings": "<hash>", "files": {"model.safetensors": {"size": 4711, "hash": "…"}, …}}
"""

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from hf_essl.common import write_text

MANIFEST, FORMAT = "manifest.json", 1
_STARTED = f".{MANIFEST}.tmp"  # the scratch file of `write_text`, whose last step turns it into the manifest


def begin(folder: Path) -> None:
    """Marks a folder as incomplete until `write_manifest`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _STARTED).touch()


def is_begun(folder: Path) -> bool:
    """Whether a save into the folder began and did not end."""
    return (folder / _STARTED).exists()


def write_manifest(folder: Path, step: int, settings: str) -> Path:
    """Hashes every file of the folder and writes the manifest; all of them are then on the disk.

    Args:
        settings: hash of the run's settings.
    """
    files = {name: {"size": path.stat().st_size, "hash": _hash(path, sync=True)} for name, path in _files(folder)}
    content = {"format": FORMAT, "step": step, "settings": settings, "files": files}
    return write_text(folder / MANIFEST, json.dumps(content, indent=1), sync=True)


def has_manifest(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that has a manifest, such as "run_state.json is missing"; None if it is whole."""
    listed = _read(folder)
    if listed is None:
        return f"its {MANIFEST} is damaged"
    found = dict(_files(folder))
    foreign = sorted(found.keys() - listed.keys())
    if foreign:
        return f"it contains {foreign[0]}, which the run did not write"
    for name, facts in listed.items():
        if name not in found:
            return f"{name} is missing"
        if found[name].stat().st_size != facts["size"]:
            return f"{name} has {found[name].stat().st_size:,} bytes instead of {facts['size']:,}"
    for name, facts in listed.items():  # the slow part, after all sizes
        if _hash(found[name]) != facts["hash"]:
            return f"{name} has other content than when it was saved"
    return None


def _read(folder: Path) -> dict[str, Any] | None:
    """The files of a manifest; None if it is not one, or that of another step's folder."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, step = content["files"], content["step"]
        well_formed = all(type(facts["size"]) is int and type(facts["hash"]) is str for facts in files.values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    named = not folder.name.startswith("checkpoint-") or folder.name == f"checkpoint-{step}"
    return files if well_formed and files and named else None


def _files(folder: Path) -> list[tuple[str, Path]]:
    """The files by their path in the folder, also those of an FSDP checkpoint's folders; no hidden ones."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = [(path.relative_to(folder).as_posix(), path) for path in paths]
    return [(name, path) for name, path in named if name != MANIFEST and not name.startswith(".")]


def _hash(path: Path, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        found = os.fstat(file.fileno())
    return _hash_of(path, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1000)
def _hash_of(path: Path, *version: int) -> str:
    """A resumed run checks its checkpoint several times; a file that has not changed is read once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
