"""`hf-essl recipes`: lists the recipes that come with the package."""

import shutil
import textwrap

from hf_essl.commands.parser import Parser


def run(argv: list[str]) -> None:
    parser = Parser("recipes", "List the packaged recipes; `hf-essl pretrain NAME` runs one, from any folder.")
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="only recipes whose name or title has all these words"
    )
    parser.add_argument("--show", metavar="NAME", help="print a recipe instead: its header has cost and results")
    options = parser.parse_args(argv)

    from hf_essl.config.packaged import find_recipe, first_line, packaged

    if options.show:
        print(find_recipe(options.show).read_text(encoding="utf-8"), end="")
        return
    found = {name: first_line(path) for name, path in packaged().items()}
    found = {n: t for n, t in found.items() if all(word.lower() in f"{n} {t}".lower() for word in options.words)}
    if not found:
        raise ValueError(f"no packaged recipe has the words {' '.join(options.words)}; `hf-essl recipes` lists all")
    width = max(map(len, found))
    for name, title in found.items():
        text = textwrap.shorten(title, max(shutil.get_terminal_size().columns - width - 4, 30), placeholder=" …")
        print(f"{name:<{width}}  {text}")
