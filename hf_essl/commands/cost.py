"""`hf-essl cost RECIPE…`: what recipes cost and save, without training."""

from __future__ import annotations

import json
from pathlib import Path

from hf_essl.commands.parser import Parser


def run(argv: list[str]) -> None:
    """Prints a table in Markdown, and writes JSON where asked."""
    parser = Parser(
        "cost",
        "Price recipes without training: petaFLOPs in the paper's convention (2 a MAC, a backward pass as\n"
        "one forward pass) and as torch counts them, with speed-ups over a baseline.",
        "Every field of a recipe can be overridden, for all of them alike.",
        usage="hf-essl cost RECIPE… [OPTIONS] [--FIELD VALUE …]",
    )
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="a YAML recipe; a grid counts cell by cell")
    parser.add_argument("--baseline", metavar="RECIPE", help="what speed-ups are over [the first recipe]")
    parser.add_argument("--images", type=int, metavar="N", help="training images [those of the data set]")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="GPUs that train together [1]")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    options, overrides = parser.parse_known_args(argv)

    from hf_essl.common import write_text
    from hf_essl.recipe import load_recipe
    from hf_essl.reporting.costs import CostEstimator, compare_costs, cost_table
    from hf_essl.sweep import load_cells

    recipes = {cell.name: cell.recipe for path in options.recipes for cell in load_cells(path, overrides)}
    baseline = load_recipe(options.baseline, overrides) if options.baseline else None
    rows = compare_costs(recipes, CostEstimator(options.images, options.processes), baseline)
    print(cost_table(rows))
    if options.json:
        write_text(Path(options.json), json.dumps([row.to_dict() for row in rows], indent=2))
