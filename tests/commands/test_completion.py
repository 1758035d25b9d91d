"""The completion scripts, run by the shell that they are for."""

import shlex
import shutil
import subprocess

import pytest

from hf_essl import cli
from hf_essl.commands.completion import script


@pytest.fixture(scope="module")
def complete():
    """What bash offers for the last word of a line."""
    text = script("bash")

    def offered(*words):
        line = " ".join(f"'{word}'" for word in ("hf-essl", *words))
        asked = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _hf_essl; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run(["bash", "-c", f"{text}\n{asked}"], capture_output=True, text=True, check=True)
        return done.stdout.split()

    return offered


def test_commands(complete):
    assert complete("pre") == ["pretrain", "preview"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("pretrain", "--learn"), ["--learning_rate"]),
        (("pretrain", "--budg"), ["--budget"]),
        (("sweep", "--weight_d"), ["--weight_decay", "--weight_decay_end"]),
        (("evaluate", "--proto"), ["--protocol"]),
        (("recipes", "--learn"), []),
        (("sweep", "--budg"), []),
    ],
)
def test_options_and_fields(complete, words, expected):
    assert complete(*words) == expected


def test_names_of_recipes(complete):
    assert complete("pretrain", "quickstart/b") == ["quickstart/byol", "quickstart/byol_baseline"]
    assert complete("embed", "quickstart/b") == []  # the shell falls back to file names


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_name_every_command(shell):
    text = script(shell)
    assert all(name in text for name in cli.COMMANDS)
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


def test_an_unknown_shell_names_the_known_ones(capsys):
    assert cli.main(["completion", "csh"]) == 2
    assert "bash" in capsys.readouterr().err


def test_every_line_of_the_fish_script_has_balanced_quotes(capsys):
    assert cli.main(["completion", "fish"]) == 0
    for line in capsys.readouterr().out.splitlines():
        shlex.split(line)
