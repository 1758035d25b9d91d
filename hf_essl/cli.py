"""`hf-essl COMMAND …`: finds the command, and turns a user's mistake into one line."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from hf_essl.errors import Diverged

COMMANDS = {
    "pretrain": ("hf_essl.commands.pretrain", "pretrain a backbone as a recipe says"),
    "compare": ("hf_essl.commands.compare", "draw accuracy against cost of finished runs"),
    "sweep": ("hf_essl.commands.sweep", "run a table of the paper, cell by cell"),
    "lr-find": ("hf_essl.commands.lr_find", "find a peak learning rate by a range test"),
    "cost": ("hf_essl.commands.cost", "what recipes cost and save, without training"),
    "benchmark": ("hf_essl.commands.benchmark", "images/s of each part of a step, against the bare step"),
    "evaluate": ("hf_essl.commands.evaluate", "accuracy of a backbone by kNN, linear probe or fine-tuning"),
    "preview": ("hf_essl.commands.preview", "draw a recipe's schedules into one picture"),
    "push": ("hf_essl.commands.push", "put the backbone of a finished run on the Hub"),
    "card": ("hf_essl.commands.card", "write the model card of a finished run"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 1 for a lost run, 2 for a mistake in the input, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    name, *rest = words
    try:
        if name not in COMMANDS:
            raise ValueError(_unknown(name))
        importlib.import_module(COMMANDS[name][0]).run(rest)
    except KeyboardInterrupt as stop:
        resume = "; the same command with `--resume_from_checkpoint true` goes on from the last checkpoint"
        print(f"\nhf-essl: {stop or 'interrupted'}{resume if name == 'pretrain' else ''}", file=sys.stderr)
        return 130
    except (ValueError, OSError, Diverged) as error:
        if os.environ.get("HF_ESSL_DEBUG") == "1":
            raise
        print(f"hf-essl: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1 if isinstance(error, Diverged) else 2
    return 0


class Parser(argparse.ArgumentParser):
    """Parser of a command. A mistake is a ValueError, so that it is told like every other."""

    def __init__(self, command: str, description: str, epilog: str | None = None, usage: str | None = None):
        super().__init__(
            prog=f"hf-essl {command}",
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # --output must not swallow --output_dir
        )

    def error(self, message: str):
        raise ValueError(f"{message}; `{self.prog} --help` explains")


class RecipeParser(Parser):
    """Parser of a command that takes a recipe and overrides; `parse_known_args` gives its options and the overrides.

    A mistake is a ValueError, so that it is told like every other.
    """

    def __init__(self, command: str, description: str, epilog: str | None = None):
        super().__init__(
            command,
            description,
            epilog or "Every field of the recipe can be overridden; `hf-essl pretrain --help` lists them.",
            usage=f"hf-essl {command} RECIPE [OPTIONS] [--FIELD VALUE …]",
        )
        self.add_argument("recipe", metavar="RECIPE", help="path of a YAML recipe")


def _usage() -> str:
    lines = [f"  {name:<12}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hf-essl COMMAND [ARGUMENTS]",
            "",
            "Pretrain vision backbones without labels at about 40 % of the usual compute.",
            "",
            *lines,
            "",
            "`hf-essl COMMAND --help` explains a command. HF_ESSL_DEBUG=1 shows the traceback of an error.",
        ]
    )


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"take one of {', '.join(COMMANDS)}"
    return f"unknown command {name!r}; {hint}"


if __name__ == "__main__":
    sys.exit(main())
