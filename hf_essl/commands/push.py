"""`hf-essl push RUN --repo_id user/name`: pushes the backbone of a finished run to the Hub."""

from pathlib import Path

from hf_essl.commands.parser import Parser


def run(argv: list[str]) -> None:
    parser = Parser(
        "push",
        "Push the backbone of a finished run to the Hub, in one commit.",
        "It uses the token of HF_TOKEN or of `hf auth login`, and creates a missing repository.",
    )
    add = parser.add_argument
    add("source", metavar="RUN", help="folder of a finished run, or of an exported backbone")
    add("--repo_id", "--repo-id", required=True, metavar="USER/NAME", help="repository on the Hub")
    add("--private", action="store_true", default=None, help="make a new repository private")
    add("--revision", metavar="BRANCH", help="branch to push to [main]")
    add("--message", dest="commit_message", metavar="TEXT", help="commit message")
    add("--full_state", "--full-state", action="store_true", help="also push heads, teacher and queue, in ssl/")
    options = parser.parse_args(argv)

    from hf_essl.hub import push_backbone
    from hf_essl.run_folder import METRICS

    if not Path(options.source, METRICS).is_file():  # the last file of a report
        from hf_essl.pretrain import complete_report

        complete_report(options.source)
    print(f"pushed to {push_backbone(**vars(options))}")
