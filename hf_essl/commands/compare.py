"""`hf-essl compare RUN…`: accuracy against cost of finished runs, as a picture and a table."""

from pathlib import Path

from hf_essl.commands.parser import Parser


def run(argv: list[str]) -> None:
    parser = Parser(
        "compare",
        "Compare finished runs. Runs of one name up to a trailing -seedN are averaged if their recipes are equal. "
        "If recipes were run at several lengths, also at equal accuracy, with 95 % bootstrap intervals.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="output folder of a run, or results.json of a sweep; X_baseline is the baseline of X, and without such a "
        "name the first run is that of all others",
    )
    parser.add_argument("--output", default="compare.png", metavar="PNG", help="path of the picture [compare.png]")
    options = parser.parse_args(argv)

    from hf_essl.pretrain import complete_report
    from hf_essl.reporting.compare import check_evaluation, comparison_table, draw_comparison, load_groups, score_of
    from hf_essl.reporting.equal_accuracy import draw_equal_accuracy, equal_accuracy_table, pairs_at_equal_accuracy
    from hf_essl.reporting.figures import png_path

    path = png_path(options.output)
    for source in options.runs:
        complete_report(source)
    groups = load_groups(options.runs)
    check_evaluation(groups)
    print(f"{comparison_table(groups)}\n\nwrote {draw_comparison(groups, path)}")
    if pairs := pairs_at_equal_accuracy(groups):
        picture = Path(options.output)
        picture = picture.with_name(f"{picture.stem}_at_equal_accuracy{picture.suffix or '.png'}")
        score = score_of(groups)
        print(f"\n{equal_accuracy_table(pairs, score)}\n\nwrote {draw_equal_accuracy(pairs, score, picture)}")
