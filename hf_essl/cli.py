"""`hf-essl COMMAND …`: runs a command, and reports a user's mistake in one line."""

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from hf_essl.commands import COMMANDS
from hf_essl.common import CONTINUED_BY, SUPERVISED, Diverged, one_line, unknown

ALIASES = {"neighbours": "neighbors"}
CONTINUES = {  # what is left of an interrupted command
    "pretrain": "the same command with `--resume_from_checkpoint true` continues from the last checkpoint",
    "sweep": "the same command continues",
    "embed": "the same command continues",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 1 for a lost run, 2 for a mistake in the input.

    A signal gives 128 + its number: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    name, *rest = words
    if name == "--version":
        print(f"hf-essl {version('hf-essl')}")
        return 0
    name = ALIASES.get(name, name)
    try:
        if name not in COMMANDS:
            raise ValueError(unknown("command", name, COMMANDS))
        importlib.import_module(COMMANDS[name][0]).run(rest)
    except KeyboardInterrupt as stop:
        if os.environ.get("RANK", "0") == "0":
            kept = (
                os.environ.get(CONTINUED_BY)
                or getattr(stop, "continues", None)
                or CONTINUES.get(name, "no result is written")
            )
            print(f"\nhf-essl: {str(stop) or f'{name} was interrupted'}; {kept}", file=sys.stderr)
        # a launcher takes another code for a crash and kills the processes that still save
        return 0 if SUPERVISED in os.environ else getattr(stop, "code", 130)
    except (ValueError, OSError, Diverged) as error:
        if os.environ.get("HF_ESSL_DEBUG") == "1":
            raise
        print(f"hf-essl: error: {one_line(error)}", file=sys.stderr)
        return 1 if isinstance(error, Diverged) else 2
    return 0


def _usage() -> str:
    lines = [f"  {name:<12}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n\n".join(
        [
            "usage: hf-essl COMMAND [ARGUMENTS]",
            "Pretrain vision backbones without labels, in the paper at about 40 % of the usual compute.",
            "\n".join(lines),
            "`hf-essl COMMAND --help` explains a command. HF_ESSL_DEBUG=1 shows the traceback of an error.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
