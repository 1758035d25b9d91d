"""`hf-essl push RUN --repo_id user/name`: puts the backbone of a finished run on the Hub."""

from __future__ import annotations

from hf_essl.commands.parser import Parser


def run(argv: list[str]) -> None:
    """Pushes it and prints the URL."""
    parser = Parser(
        "push",
        "Put the backbone of a finished run on the Hub, in one commit.",
        "The token is that of HF_TOKEN or of `hf auth login`; the repository is made where it is missing.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="folder of a finished run, or of an exported backbone")
    add("--repo_id", "--repo-id", required=True, metavar="USER/NAME", help="repository on the Hub")
    add("--private", action="store_true", default=None, help="make the repository a private one")
    add("--revision", metavar="BRANCH", help="branch to push to [main]")
    add("--message", metavar="TEXT", help="of the commit")
    add("--full_state", "--full-state", action="store_true", help="heads, teacher and queue as well, under ssl/")
    options = parser.parse_args(argv)

    from hf_essl.hub import push_backbone

    url = push_backbone(
        options.run,
        options.repo_id,
        private=options.private,
        revision=options.revision,
        commit_message=options.message,
        full_state=options.full_state,
    )
    print(f"pushed to {url}")
