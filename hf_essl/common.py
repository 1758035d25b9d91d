"""Small helpers that every layer shares: exceptions that end a run, messages in one line, files, Markdown tables."""

import difflib
import html
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

CONTINUED_BY = "HF_ESSL_CONTINUED_BY"  # variable: how the user continues what `--accelerate_config` has started
SUPERVISED = "HF_ESSL_SUPERVISED"  # variable of processes that `--accelerate_config` has started


class Diverged(RuntimeError):
    """The run was stopped because no further step could have saved it."""


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal, after it saved a checkpoint.

    Args:
        code: the exit code, 128 + the signal.

    Attributes:
        continues: how to continue, if not by the same command with `--resume_from_checkpoint true`.
    """

    continues: str | None = None

    def __init__(self, message: str, code: int = 130):
        super().__init__(message)
        self.code = code


def one_line(text: object) -> str:
    """Text without line breaks and control characters, such as the message of an exception; else its type."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split())) or type(text).__name__


def markdown(text: str) -> str:
    """A name as text of a Markdown page: nothing in it is markup or HTML."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(one_line(text), quote=False))


def nearest(name: str, choices: Iterable[str], count: int = 1) -> list[str]:
    """The choices that are spelled most like `name`; empty if none is close."""
    return difflib.get_close_matches(name, list(choices), n=count)


def unknown(field: str, name: object, choices: Iterable[str]) -> str:
    """The message for a name that is not one of the choices: the value, the choices, and the nearest of them."""
    choices = list(choices)
    near = nearest(str(name), choices)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{field} is {name!r}; choose one of {', '.join(choices)}{hint}"


def evenly_spaced(total: int, count: int | None) -> list[int]:
    """`count` indices spread over `range(total)`, starting at 0; all of them for None or a count above `total`."""
    count = total if count is None else min(count, total)
    return [index * total // count for index in range(count)]


def write_text(path: Path, text: str, sync: bool = False) -> Path:
    """Writes a file next to its destination, then moves it there, so that readers never see half of it.

    With `sync`, it is also on the disk before it is moved.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(scratch, path)
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    """A Markdown table of the rows without a None; empty text if there are none."""
    kept = [row for row in rows if None not in row]
    lines = [[cell.replace("|", "\\|") for cell in row if cell is not None] for row in (header, *kept)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if kept else ""
