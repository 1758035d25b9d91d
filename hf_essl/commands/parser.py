"""Argument parsers of the commands: a mistake is a ValueError, reported like any other."""

import argparse
from collections.abc import Callable
from pathlib import Path

from hf_essl.storage import try_folder


class Parser(argparse.ArgumentParser):
    """Parser of a command; a mistake is a ValueError."""

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


def whole(least: int) -> Callable[[str], int]:
    """The type of an option that is an integer of at least `least`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"it is {text!r}, not an integer") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"it is {value}; it must be at least {least}")
        return value

    return read


def output_file(text: str) -> str:
    """The type of an option that names a file to write, tried before the work; one missing folder is created."""
    path = Path(text).expanduser()
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"it is {text}, which is a folder; name a file in it")
    _try_folder(path.parent, text)
    return str(path)


def output_folder(text: str) -> str:
    """The same for a folder to write into."""
    path = Path(text).expanduser()
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"it is {text}, which is a file; name a folder")
    _try_folder(path if path.is_dir() else path.absolute().parent, text)
    return str(path)


def _try_folder(folder: Path, text: str) -> None:
    try:
        try_folder(folder)  # one new folder, but no chain of them: a longer one is a typing mistake
    except OSError as error:
        raise argparse.ArgumentTypeError(f"it is {text}, but {folder} cannot be written: {error.strerror}") from None


class RecipeParser(Parser):
    """Parser of a command that takes a recipe; `parse_known_args` gives its options and the overrides."""

    def __init__(
        self,
        command: str,
        description: str,
        epilog: str | None = None,
        name: str = "RECIPE",
        named: str = "path of a YAML recipe, or the name of a packaged one, such as quickstart; or images",
    ):
        super().__init__(
            command,
            description,
            epilog or "Every field of the recipe can be overridden; `hf-essl pretrain --help` lists them.",
            usage=f"hf-essl {command} {name} [OPTIONS] [--FIELD VALUE …]",
        )
        self.add_argument("recipe", metavar=name, help=named)


def add_launch_option(parser: Parser) -> None:
    """Adds `--accelerate_config`, which `hf_essl.commands.launch.relaunch` acts on."""
    parser.add_argument(
        *("--accelerate_config", "--accelerate-config"),
        metavar="NAME",
        help="start several processes: single_gpu, multi_gpu, multi_node, fsdp, cpu, or the path of a configuration",
    )
