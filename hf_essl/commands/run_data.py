"""The data arguments of a command that reads the data set of a run again."""

import os
import sys
from typing import Any

from hf_essl.evaluation.backbone import arguments_of_run


def with_those_of_the_run(source: str, given: dict[str, Any]) -> dict[str, Any]:
    """The data arguments that the user has given, and those of the run on its own data set, which are printed."""
    own = arguments_of_run(source, given)
    if own and os.environ.get("RANK", "0") == "0":
        shown = ", ".join(f"{name} {value}" for name, value in own.items())
        print(f"on the data set of the run, as in its recipe: {shown}", file=sys.stderr)
    return own | given
