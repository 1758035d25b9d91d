"""`hf-essl compare RUN…`: accuracy against cost of finished runs, as a picture and a table."""

from hf_essl.commands.parser import Parser


def run(argv: list[str]) -> None:
    parser = Parser(
        "compare",
        "Compare finished runs. Runs of one name up to a trailing -seedN are averaged if their recipes are equal.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folder of a run; the first is the baseline")
    parser.add_argument("--output", default="compare.png", metavar="PNG", help="path of the picture [compare.png]")
    options = parser.parse_args(argv)

    from hf_essl.reporting.compare import check_evaluation, comparison_table, draw_comparison, load_groups

    groups = load_groups(options.runs)
    check_evaluation(groups)
    print(f"{comparison_table(groups)}\n\nwrote {draw_comparison(groups, options.output)}")
