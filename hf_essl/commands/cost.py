"""`hf-essl cost RECIPE…`: what recipes cost and save, without training."""

import json
from dataclasses import replace
from pathlib import Path

from hf_essl.commands.parser import Parser, output_file, whole


def run(argv: list[str]) -> None:
    """Prints a table in Markdown; `--json` also writes the figures to a file."""
    parser = Parser(
        "cost",
        "Estimate the cost of recipes without training: petaFLOPs in the paper's convention (2 per MAC, a backward\n"
        "pass as one forward pass) and as counted by torch, with speed-ups over each recipe's own baseline.",
        "Every field of a recipe can be overridden, for all recipes at once.",
        usage="hf-essl cost RECIPE… [OPTIONS] [--FIELD VALUE …]",
    )
    add = parser.add_argument
    add(
        "recipes",
        nargs="+",
        metavar="RECIPE",
        help="path or name of a recipe, a sweep for each of its cells, or images",
    )
    add("--baseline", metavar="RECIPE", help="baseline of all speed-ups [each recipe's own `baseline:`]")
    add("--images", type=whole(1), metavar="N", help="number of training images [that of the dataset]")
    add("--processes", type=whole(1), default=1, metavar="N", help="GPUs that train together [1]")
    add("--json", type=output_file, metavar="FILE", help="also write the figures to this file")
    options, overrides = parser.parse_known_args(argv)

    from hf_essl.common import write_text
    from hf_essl.planned_run import is_recipe, recipe_of
    from hf_essl.recipe import load_recipe
    from hf_essl.reporting.costs import CostEstimator, Priced, compare_costs, cost_table
    from hf_essl.sweep import cells_to_price

    images = [name for name in options.recipes if not is_recipe(name)]
    named = [name for name in options.recipes if name not in images]
    recipes = cells_to_price(named, overrides) if named else []
    recipes += [Priced(name, recipe_of(name, overrides)) for name in images]
    if options.baseline:
        baseline = (Path(options.baseline).stem, load_recipe(options.baseline, overrides))
        recipes = [replace(priced, baseline=baseline) for priced in recipes]
    rows = compare_costs(recipes, CostEstimator(options.images, options.processes))
    print(cost_table(rows))
    if options.json:
        write_text(Path(options.json), json.dumps([row.to_dict() for row in rows], indent=2))
