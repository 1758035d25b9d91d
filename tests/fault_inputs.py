"""Drawn inputs: a value outside of a field's declared type or range ends in one line and exit code 2.

Any text in a field that takes text ends in such a line or is accepted, and nothing is written above the folder.
"""

import contextlib
import io
import os
import random
import tempfile
import typing
from pathlib import Path
from unittest import mock

from annotated_types import Ge, Gt, Le, Lt

import hf_essl.pretrain
from hf_essl.cli import main
from hf_essl.config.fields import fields_of, hints_of, kinds
from hf_essl.config.inherited import RANGES
from hf_essl.config.values import GROUPS, REFUSED


class Loaded(BaseException):
    """The images of a run would be loaded now: its input was accepted."""


def _load(*args, **options):
    raise Loaded


def outcome(words: list[str]) -> tuple[int | str, str]:
    """The exit code of a command and what it wrote on stderr; `accepted` or the exception instead of a code."""
    printed, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(hf_essl.pretrain, "load_images", _load),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(errors),
    ):
        try:
            code: int | str = main(words)
        except Loaded:
            code = "accepted"
        except BaseException as error:
            code = f"traceback: {error!r}"
    return code, errors.getvalue()


def is_refused(words: list[str]) -> bool:
    """Whether a command ends with exit code 2 and one line."""
    code, errors = outcome(words)
    lines = [line for line in errors.splitlines() if line.startswith("hf-essl: error: ")]
    return code == 2 and len(lines) == 1 and errors.rstrip().endswith(lines[0])


def _limits(hint) -> list:
    """The bounds of a type and of its parts."""
    found = []
    if typing.get_origin(hint) is typing.Annotated:
        for entry in typing.get_args(hint)[1:]:
            found += [one for one in getattr(entry, "metadata", [entry]) if isinstance(one, (Ge, Gt, Le, Lt))]
    return found + [one for part in typing.get_args(hint) if not isinstance(part, (str, int)) for one in _limits(part)]


def _outside(limit, draw: random.Random) -> float:
    far = draw.choice([1, 2, 1000, 10**12])
    match limit:
        case Ge(bound):
            return bound - far
        case Gt(bound):
            return bound - draw.choice([0, far])
        case Le(bound):
            return bound + far
        case Lt(bound):
            return bound + draw.choice([0, far])


def wrong_words(group: type, key: str, draw: random.Random) -> list[str] | None:
    """Words after `--key` that its type or range excludes; None if its type takes any text."""
    hint = hints_of(group)[key]
    accepted = kinds(hint)
    if typing.get_origin(hint) is typing.Literal:
        return [draw.choice(["zebra", "NONE!", "{}", "-1", "#"])]
    if str in accepted or not accepted & {bool, int, float, list, dict}:
        return None
    if accepted <= {bool, type(None)}:
        return draw.choice([["maybe"], ["2"], ["1.5"], ["{}"], ["truee"], ["true", "false"]])
    if dict in accepted:
        return draw.choice([["3"], ["abc"], ["[1]"], ["{a: "], ["true"], ["{1", "2}"]])
    garbage = ["huge", "nan", "true", "{}", "#", "~", "1:30", "inf", "1e", "--", "0x1g"]
    numbers = [_outside(limit, draw) for limit in _limits(hint)]
    if key == "max_steps":
        numbers = [number for number in numbers if number != -1]  # the whole run
    if accepted <= {int, type(None)}:
        garbage += ["1.5", "-0.5"]
    if list in accepted:
        return draw.choice([["1"] * 9, ["huge"], ["{}"], ["[[1]]"], ["-1", "-1"], ["nan", "nan"]])
    return [str(draw.choice([*numbers, draw.choice(garbage)]))]


def drawn(count: int, seed: int = 0) -> typing.Iterator[list[str]]:
    """Command lines with one wrong value each."""
    draw = random.Random(seed)
    keys = [
        (group, key)
        for group in GROUPS.values()
        for key in dict.fromkeys((*group.__annotations__, *(RANGES if group is GROUPS["training"] else ())))
        if key not in REFUSED and wrong_words(group, key, draw) is not None
    ]
    for _ in range(count):
        group, key = draw.choice(keys)
        words = wrong_words(group, key, draw)
        assert words is not None
        value = [f"--{key}={words[0]}"] if len(words) == 1 else [f"--{key}", *words]
        yield [draw.choice(["pretrain", "pretrain", "pretrain", "lr-find", "cost"]), "quickstart", *value]


TEXTS = ["", " ", "..", "../../escape", "a/../../escape", "~", "#", "none", "a\nb", "\x1b[31mred", "ü\u202e", "\udcff"]
TEXTS += [
    "x" * 5000,
    "{}",
    "[1",
    "a: b",
    "<b>",
    "%s%n",
    "$(id)",
    "-",
    "a b",
    "\\",
    "'",
    '"',
    "|",
    "con",
    "1e400",
    "\x7f",
]


def drawn_texts(count: int, seed: int = 0) -> typing.Iterator[list[str]]:
    """Command lines with one drawn text in a field that takes any, such as names, paths and columns."""
    draw = random.Random(seed)
    keys = [
        key
        for group in GROUPS.values()
        for key in fields_of(group)
        if key not in REFUSED and str in kinds(hints_of(group)[key]) and wrong_words(group, key, draw) is None
    ]
    for _ in range(count):
        command = draw.choice(["pretrain", "pretrain", "lr-find", "cost"])
        yield [command, "quickstart", f"--{draw.choice(keys)}={draw.choice(TEXTS)}"]


def holds_as_text(words: list[str]) -> bool:
    """Whether a command with any text accepts it or refuses it in one line, and writes nothing above its folder."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder) / "a" / "b" / "c"
        inner.mkdir(parents=True)
        os.chdir(inner)
        try:
            held = outcome(words)[0] in ("accepted", 0) or is_refused(words)
        finally:
            os.chdir(here)
        named = words[-1].startswith(("--output_dir=", "--cache_dir="))  # the user names the folder to write into
        return held and (named or {path for path in Path(folder).rglob("*") if inner not in path.parents} == {
            inner, *list(inner.parents)[:2]
        })  # fmt: skip


def run(count: int = 10_000) -> tuple[int, int]:
    """How many were tried, and how many were refused as they should be; prints a line for each other one.

    One in five is a text.
    """
    held = 0
    cases = [(words, is_refused) for words in drawn(count - count // 5)]
    for words, holds in [*cases, *((words, holds_as_text) for words in drawn_texts(count // 5))]:
        if holds(words):
            held += 1
        else:
            print("did not hold:", ascii(" ".join(words))[:200], *outcome(words), flush=True)
    return count, held


if __name__ == "__main__":
    tried, held = run()
    print(f"{tried} tried, {held} held")
