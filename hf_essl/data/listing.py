"""What is on disk below a folder: its images, tables and metadata files, and why every other file is left out."""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePath

from PIL import Image, ImageFile

from hf_essl.data.inventory import count_notice

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}  # names that `datasets` gives a meaning
SYSTEM = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found"}
SYSTEM |= {"system volume information"}
HIDDEN, ARCHIVE, SPECIAL, UNNAMED, OTHER = "hidden", "archive", "special", "unnamed", "other"


@dataclass
class Listing:
    """The files below `root` by their paths relative to it, with "/", folder by folder in the order of the names.

    images: size in bytes and modification time in ns of each file that Pillow can open by its extension.
    tables: parquet files. metadata: files named as in `METADATA`. left_out: the others by kind.
    """

    root: Path
    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    tables: list[str] = field(default_factory=list)
    metadata: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def report(self, name: str) -> None:
        """Logs a line for each kind of file that is left out."""
        others = self.left_out[OTHER]
        kinds = sorted({PurePath(other).suffix.lower() or "no extension" for other in others})
        shown = ", ".join(kinds[:5] + ["…"] * (len(kinds) > 5))
        for items, noun, why in (
            (self.left_out[HIDDEN], "file", "left out because a name is hidden or of the system"),
            (self.left_out[SPECIAL], "file", "left out because of a broken link or because it is no regular file"),
            (self.left_out[UNNAMED], "file", "left out because the name is not UTF-8; rename to use them"),
            (self.left_out[ARCHIVE], "archive", "left out; unpack to use the images"),
            (others, "file", f"left out because Pillow opens no such images ({shown})"),
        ):
            count_notice(name, items, noun, why)


def scan(root: Path) -> Listing:
    """Lists a folder and everything below it; links are followed.

    Raises ValueError for a folder that cannot be listed, and for a link that leads back to a folder above it.
    """
    root = root.resolve()  # as `embed` and its search name the files; `absolute` keeps `..`
    listing = Listing(root)
    _walk(root, "", (), listing)
    return listing


@cache
def image_extensions() -> frozenset[str]:
    """The extensions, in lower case, of the formats whose pixels Pillow can read."""
    identified_only = {"MPEG"} | {name for name, (made, _) in _openers().items() if _is_stub(made)}
    readable = (set(_openers()) | {"MPO"}) - identified_only  # MPO is opened as a JPEG
    return frozenset(end for end, name in Image.registered_extensions().items() if name in readable)


def _openers():
    Image.init()
    return Image.OPEN


def _is_stub(factory: object) -> bool:
    return isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)


def _walk(folder: Path, relative: str, above: tuple[tuple[int, int], ...], listing: Listing) -> None:
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"folder {folder} cannot be listed ({reason}); make it readable or move it away") from error
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise ValueError(f"folder {folder} is a link to a folder above it; remove the link")
    for entry in entries:
        name = f"{relative}{entry.name}"
        if entry.name.startswith(".") or entry.name.casefold() in SYSTEM:
            listing.left_out[HIDDEN] += _everything(entry, name)
        elif _is_dir(entry):
            _walk(folder / entry.name, f"{name}/", (*above, identity), listing)
        else:
            _add_file(entry, name, listing)


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that is not readable
        return False


def _everything(entry: os.DirEntry, name: str) -> list[str]:
    if not entry.is_dir(follow_symlinks=False):
        return [name]
    found = (os.path.join(base, file) for base, _, files in os.walk(entry.path) for file in files)
    return sorted(f"{name}{path[len(entry.path) :].replace(os.sep, '/')}" for path in found)


def _add_file(entry: os.DirEntry, name: str, listing: Listing) -> None:
    lower = entry.name.lower()
    if not os.path.isfile(entry.path):
        listing.left_out[SPECIAL].append(name)
    elif not _is_utf8(entry.path):
        listing.left_out[UNNAMED].append(name)
    elif PurePath(lower).suffix in image_extensions():
        status = entry.stat()
        listing.images[name] = (status.st_size, status.st_mtime_ns)
    elif lower in METADATA:
        listing.metadata.append(name)
    elif lower.endswith(".parquet"):
        listing.tables.append(name)
    else:
        listing.left_out[ARCHIVE if lower.endswith(ARCHIVES) else OTHER].append(name)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
