"""`hf-essl card RUN`: the model card of a finished run, made anew from its folder."""

from __future__ import annotations

from hf_essl.commands.parser import Parser


def run(argv: list[str]) -> None:
    """Writes the card, and where asked copies it into a folder of cards and renews that folder's index."""
    parser = Parser(
        "card",
        "Write the model card of finished runs into their backbone/, from their own files.",
        "`hf-essl evaluate RUN --output RUN/linear.json …` before it adds that result.",
    )
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="output folder of a finished run")
    add("--baseline", metavar="RUN", help="finished run on the same data, for the speed-up over it")
    add("--repo_id", metavar="USER/NAME", help="where it will be on the Hub, for the code that loads it")
    add("--license", metavar="ID", help="of the weights, such as apache-2.0 [the card names none]")
    add("--into", metavar="FOLDER", help="copy card, pictures and numbers into a sub-folder each, and index them all")
    add("--index", metavar="FOLDER", help="write the table of the runs in FOLDER into its README.md")
    options = parser.parse_args(argv)
    if not (options.runs or options.index):
        raise ValueError("no run is given; name the folder of a finished run, or --index FOLDER")

    from hf_essl.hub.card import card_of_run
    from hf_essl.hub.card_gallery import add_card, write_index

    for folder in options.runs:
        card = card_of_run(folder, repo_id=options.repo_id, baseline=options.baseline, license=options.license)
        print(f"wrote {card}")
        if options.into:
            print(f"wrote {add_card(folder, options.into)}")
    for folder in dict.fromkeys(filter(None, (options.into, options.index))):
        print(f"wrote {write_index(folder)}")
