"""What the blocks of the campaign share: a small run with checkpoints 4, 8 and 12, and a count of what held."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

from safetensors.torch import load_file

SAVING = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 3, "num_train_epochs": 2, "warmup_epochs": 1}


@cache
def saved_run() -> Path:
    """The folder of a finished run of 12 steps."""
    from tests.helpers import small_trainer

    folder = Path(tempfile.mkdtemp(prefix="faults-")) / "run"
    with silence():
        small_trainer(folder, **SAVING).train()
    return folder


def same_weights(first: Path, second: Path) -> bool:
    """Whether two safetensors files hold the same values."""
    ours, theirs = (load_file(path) for path in (first, second))
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def count(cases: Iterable[tuple[str, Callable[[], object]]]) -> tuple[int, int]:
    """Runs the cases; one holds if its function returns something true and raises nothing."""
    tried = held = 0
    for name, function in cases:
        tried += 1
        try:
            with silence():
                good, why = bool(function()), "did not hold"
        except Exception as error:  # any kind is a fault that did not hold
            good, why = False, f"{type(error).__name__}: {error}"
        held += good
        if not good:
            print(f"  {name}: {' '.join(why.split())[:300]}", file=sys.stderr, flush=True)
    return tried, held


@contextlib.contextmanager
def silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        yield
