"""`hf-essl sweep FILE`: runs every cell of a sweep and prints its table."""

import json
from pathlib import Path

from hf_essl.commands.parser import RecipeParser


def run(argv: list[str]) -> None:
    """Runs the unfinished cells, resumes interrupted ones, and prints the table."""
    parser = RecipeParser("sweep", "Run every cell of a sweep and print its table; the same command resumes it.")
    parser.add_argument("--table", action="store_true", help="only print the table of the finished cells")
    options, overrides = parser.parse_known_args(argv)

    from hf_essl.common import write_text
    from hf_essl.config.files import read_yaml
    from hf_essl.pretrain import pretrain
    from hf_essl.sweep import load_cells, run_sweep, sweep_table

    cells = load_cells(options.recipe, overrides)
    if not options.table:
        run_sweep(cells, pretrain, lambda text: print(text, flush=True))
    files = {cell.name: cell.folder / "metrics.json" for cell in cells}
    finished = {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}
    title = read_yaml(Path(options.recipe)).get("title", Path(options.recipe).stem)
    text = f"{title}\n\n{sweep_table(cells, finished)}\n"
    print(f"\n{text}")
    if finished:
        print(f"wrote {write_text(cells[0].folder.parent / 'table.md', text)}")
