"""`hf-essl completion SHELL`: a script that lets the shell complete commands, options, fields and recipes."""

import contextlib
import importlib
import io
import re
import shlex
from string import Template

from hf_essl.commands import COMMANDS
from hf_essl.commands.parser import Parser

INSTALL = {
    "bash": 'eval "$(hf-essl completion bash)"',
    "zsh": 'eval "$(hf-essl completion zsh)"',
    "fish": "hf-essl completion fish | source",
}
"""By shell, the line that enables completion, for ~/.bashrc, ~/.zshrc and ~/.config/fish/config.fish."""

BASH = Template("""\
_hf_essl() {
    local current=$${COMP_WORDS[COMP_CWORD]} words
    if (( COMP_CWORD == 1 )); then
        words="$commands"
    elif [[ $$current == -* ]]; then
        case $${COMP_WORDS[1]} in
$options
        esac
    elif [[ " $with_recipe " == *" $${COMP_WORDS[1]} "* ]]; then
        words="$recipes"
    fi
    COMPREPLY=( $$(compgen -W "$$words" -- "$$current") )
}
complete -o bashdefault -o default -F _hf_essl hf-essl
""")


def run(argv: list[str]) -> None:
    lines = "\n".join(f"  {shell:<6}{line}" for shell, line in INSTALL.items())
    parser = Parser(
        "completion",
        "Print a script that completes commands, options, fields and the names of packaged recipes.",
        f"Add the line of your shell to its startup file:\n{lines}",
    )
    parser.add_argument("shell", choices=tuple(INSTALL), help="the shell")
    print(script(parser.parse_args(argv).shell), end="")


def script(shell: str) -> str:
    """The script of a shell; it contains all words, so completing starts no Python."""
    from hf_essl.config.packaged import packaged
    from hf_essl.config.values import all_fields

    texts = {name: _help(name) for name in COMMANDS if name != "completion"}
    fields = {f"--{field}" for field in all_fields()}
    options = {name: sorted(_options(text) | (fields if "--FIELD" in text else set())) for name, text in texts.items()}
    with_recipe = [name for name, text in texts.items() if "RECIPE" in text]
    options["completion"] = ["--help"]
    if shell == "fish":
        return _fish({name: summary for name, (_, summary) in COMMANDS.items()}, options, with_recipe, packaged())
    cases = "\n".join(f'            {name}) words="{" ".join(words)}" ;;' for name, words in options.items())
    text = BASH.substitute(
        commands=" ".join(COMMANDS), options=cases, with_recipe=" ".join(with_recipe), recipes=" ".join(packaged())
    )
    return f"autoload -U +X bashcompinit && bashcompinit\n{text}" if shell == "zsh" else text


def _help(command: str) -> str:
    """What `hf-essl COMMAND --help` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        importlib.import_module(COMMANDS[command][0]).run(["--help"])
    return printed.getvalue()


def _options(text: str) -> set[str]:
    """The options in a help text, without the other spelling of one, with dashes."""
    return set(re.findall(r"(?<![\w-])--[a-z]\w+(?![\w-])", text))


def _fish(commands: dict[str, str], options: dict[str, list[str]], with_recipe: list[str], recipes) -> str:
    first, lines = "__fish_is_nth_token 1", []
    for name, summary in commands.items():
        lines.append(f"complete -c hf-essl -n '{first}' -f -a {name} -d {shlex.quote(summary)}")
    for name, words in options.items():
        condition = f"__fish_seen_subcommand_from {name}"
        lines += [f"complete -c hf-essl -n '{condition}' -l {word.removeprefix('--')}" for word in words]
        if name in with_recipe:
            lines.append(f"complete -c hf-essl -n '{condition}' -a '{' '.join(recipes)}'")
    return "\n".join(lines) + "\n"
