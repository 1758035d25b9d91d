"""`hf-essl sweep FILE`: runs the table that a file describes, cell by cell, and prints it."""

from __future__ import annotations

import json
from pathlib import Path

from hf_essl.commands.parser import RecipeParser


def run(argv: list[str]) -> None:
    """Runs what is not finished; what was interrupted goes on where it stopped."""
    parser = RecipeParser("sweep", "Run every cell of a sweep and print its table; the same command resumes it.")
    parser.add_argument("--table", action="store_true", help="print the table of what is finished, and run nothing")
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
    table = f"{title}\n\n{sweep_table(cells, finished)}"
    print(f"\n{table}")
    if finished:
        print(f"\nwrote {write_text(cells[0].folder.parent / 'table.md', table + chr(10))}")
