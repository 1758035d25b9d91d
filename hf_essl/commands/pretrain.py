"""`hf-essl pretrain RECIPE`: trains a backbone without labels."""

from __future__ import annotations

import sys

from hf_essl.cli import RecipeParser


def run(argv: list[str]) -> None:
    """Loads the recipe with its overrides and trains it."""
    epilog = None
    if {"-h", "--help"} & set(argv):
        from hf_essl.recipe import describe_fields

        epilog = describe_fields()
    parser = RecipeParser(
        "pretrain", "Pretrain a backbone as a recipe says; any of its fields can be overridden.", epilog
    )
    options, overrides = parser.parse_known_args(argv)

    from hf_essl.recipe import load_recipe

    recipe = load_recipe(options.recipe, overrides)
    if recipe.training.process_index == 0:
        print(f"loading {recipe.data.dataset} …", file=sys.stderr)

    from hf_essl.pretrain import pretrain

    pretrain(recipe)
