import json
import os
import subprocess
import sys
import types

import pytest

from hf_essl import cli
from hf_essl.commands.parser import RecipeParser


def _python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=os.getcwd())


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from hf_essl.cli import main; rc = main(['--help'])\n"
        "import json\n"
        "heavy = [m for m in ('torch', 'transformers', 'timm', 'yaml', 'numpy') if m in sys.modules]\n"
        "print(json.dumps([rc, heavy]))"
    )
    result = _python(code)
    rc, heavy = json.loads(result.stdout.splitlines()[-1])
    assert (rc, heavy) == (0, [])
    assert "pretrain" in result.stdout and "preview" in result.stdout


@pytest.fixture
def command(monkeypatch):
    """Puts a function in as the command `pretrain`."""

    def _set(function):
        monkeypatch.setitem(cli.COMMANDS, "pretrain", ("fake_command", "a fake"))
        monkeypatch.setitem(sys.modules, "fake_command", types.SimpleNamespace(run=function))

    return _set


def _raiser(error):
    def run(argv):
        raise error

    return run


def test_the_words_after_the_command_reach_it(command):
    seen = []
    command(seen.append)
    assert cli.main(["pretrain", "r.yaml", "--max_steps", "2"]) == 0
    assert seen == [["r.yaml", "--max_steps", "2"]]


@pytest.mark.parametrize(
    "error", [ValueError("seed is x;\n  take 1"), FileNotFoundError("seed is x; take 1"), OSError("seed is x; take 1")]
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(command, capsys, error):
    command(_raiser(error))
    assert cli.main(["pretrain"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "hf-essl: error: seed is x; take 1\n")


def test_debug_shows_the_traceback(command, monkeypatch):
    monkeypatch.setenv("HF_ESSL_DEBUG", "1")
    command(_raiser(ValueError("x")))
    with pytest.raises(ValueError):
        cli.main(["pretrain"])


def test_a_bug_is_not_hidden(command):
    command(_raiser(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["pretrain"])


def test_ctrl_c_says_how_to_resume(command, capsys):
    command(_raiser(KeyboardInterrupt()))
    assert cli.main(["pretrain"]) == 130
    assert "--resume_from_checkpoint true" in capsys.readouterr().err


def test_an_unknown_command_names_the_nearest(capsys):
    assert cli.main(["pretrian"]) == 2
    choices = ", ".join(cli.COMMANDS)
    assert (
        capsys.readouterr().err
        == f"hf-essl: error: command is 'pretrian'; choose one of {choices}; did you mean 'pretrain'?\n"
    )
    assert cli.main(["zzz"]) == 2
    assert "command is 'zzz'; choose one of pretrain, recipes, compare, sweep, lr-find" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_wrong_option_of_any_command_is_one_line(name, capsys, tmp_path):
    assert cli.main([name, str(tmp_path / "r.yaml"), "--no_such_option"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("hf-essl: error: ") and err.count("\n") == 1


def test_no_command_prints_the_usage_to_stderr(capsys):
    assert cli.main([]) == 2
    assert "usage: hf-essl COMMAND" in capsys.readouterr().err


def test_a_missing_recipe_is_one_line(capsys, tmp_path):
    assert cli.main(["preview", str(tmp_path / "no.yaml")]) == 2
    assert capsys.readouterr().err == (
        f"hf-essl: error: recipe {tmp_path / 'no.yaml'} cannot be read: No such file or directory\n"
    )


def test_a_recipe_parser_leaves_the_overrides_in_order():
    parser = RecipeParser("preview", "text")
    parser.add_argument("--output")
    words = [
        "r.yaml",
        "--output_dir",
        "x",
        "--blur_p",
        "1.0",
        "0.1",
        "--output",
        "p.png",
        "--max_steps",
        "-1",
        "--a=b c",
    ]
    options, overrides = parser.parse_known_args(words)
    assert (options.recipe, options.output) == ("r.yaml", "p.png")
    assert overrides == ["--output_dir", "x", "--blur_p", "1.0", "0.1", "--max_steps", "-1", "--a=b c"]
    with pytest.raises(ValueError, match="RECIPE; `hf-essl preview --help` explains"):
        parser.parse_known_args([])


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_ctrl_c_says_which_command_was_stopped_and_what_is_left(name, monkeypatch, capsys):
    def interrupted(words):
        raise KeyboardInterrupt  # as Python does, without a message

    monkeypatch.setattr(cli.importlib, "import_module", lambda path: types.SimpleNamespace(run=interrupted))
    assert cli.main([name]) == 130
    said = capsys.readouterr().err
    assert said.startswith(f"\nhf-essl: {name} was interrupted; ") and said.count("\n") == 2
    kept = "the same command" if name in ("pretrain", "sweep", "embed") else "no result is written"
    assert kept in said
