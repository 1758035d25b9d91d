"""`hf-essl compare RUN…`: accuracy against cost of finished runs, as a picture and a table."""

from hf_essl.commands.parser import Parser


def run(argv: list[str]) -> None:
    parser = Parser(
        "compare",
        "Compare finished runs. Runs of one name up to a trailing -seedN are averaged if their recipes are equal. "
        "Recipes that were run at several lengths are compared at equal accuracy, with 95 % bootstrap intervals.",
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
    print(comparison_table(groups))
    pairs, score = pairs_at_equal_accuracy(groups), score_of(groups)
    in_pairs = {group.name for pair in pairs for arm in pair for group in arm.lengths}
    if any(group.name not in in_pairs for group in groups):
        print(f"\nwrote {draw_comparison(groups, path)}")
        path = path.with_stem(f"{path.stem}_at_equal_accuracy")
    if pairs:
        print(f"\n{equal_accuracy_table(pairs, score)}\n\nwrote {draw_equal_accuracy(pairs, score, path)}")
