"""`hf-essl card RUN`: writes the model card of a finished run again, from the files in its folder."""

import re
from pathlib import Path

from hf_essl.commands.parser import Parser, output_folder


def run(argv: list[str]) -> None:
    """Writes the cards; `--into` copies them into a folder of cards and updates its index."""
    options = _parser().parse_args(argv)
    if not (options.runs or options.index):
        raise ValueError("no run is given; pass the folder of a finished run, or --index FOLDER")
    if options.into:
        check_names(options.runs)
    if options.repo_id is not None:
        check_repo_id(options.repo_id)
    if options.license is not None and not re.fullmatch(r"[\w.+-]+", options.license):
        raise ValueError(f"license is {options.license!r}; it takes one of the Hub's names, such as apache-2.0")

    from hf_essl.hub.card import card_of_run
    from hf_essl.hub.card_gallery import add_card, write_index
    from hf_essl.pretrain import complete_report

    for source in filter(None, (options.baseline, *options.runs)):
        complete_report(source)
    for source in options.runs:
        card = card_of_run(source, repo_id=options.repo_id, baseline=options.baseline, license=options.license)
        print(f"wrote {card}")
        if options.into:
            print(f"wrote {add_card(source, options.into)}")
    for folder in dict.fromkeys(filter(None, (options.into, options.index))):
        print(f"wrote {write_index(folder)}")


def _parser() -> Parser:
    parser = Parser(
        "card",
        "Write the model card of finished runs into their backbone/, from their own files.",
        "The card includes the results of `hf-essl evaluate RUN --output RUN/linear.json …`.",
    )
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="output folder of a finished run")
    add("--baseline", metavar="RUN", help="finished run on the same data, for the speed-up over it")
    add("--repo_id", metavar="USER/NAME", help="repository on the Hub from which the card's code loads the backbone")
    add("--license", metavar="ID", help="license of the weights, such as apache-2.0 [none is named]")
    add(
        "--into",
        type=output_folder,
        metavar="FOLDER",
        help="copy card, pictures and numbers into sub-folders, and update their index",
    )
    add("--index", metavar="FOLDER", help="write the table of the runs in FOLDER into its README.md")
    return parser


def check_names(runs: list[str]) -> None:
    """Raises ValueError for two runs whose copies would have the same folder."""
    names = [Path(run).resolve().name for run in runs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two of the runs are named {twice[0]}, and --into has a folder of that name; rename one")


def check_repo_id(name: str) -> None:
    """Raises ValueError for what cannot be the name of a repository on the Hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ValueError(f"repo_id is {name!r}; it is USER/NAME, such as ada/net") from None
