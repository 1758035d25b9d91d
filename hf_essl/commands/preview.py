"""`hf-essl preview RECIPE`: draws a recipe's schedules into one picture, and its views into another."""

from __future__ import annotations

from hf_essl.commands.parser import RecipeParser


def run(argv: list[str]) -> None:
    """Writes the pictures and prints their paths."""
    parser = RecipeParser(
        "preview", "Draw the learning rate, momentum, magnitude and resolution of a recipe (Fig. 2, 3)."
    )
    parser.add_argument("--output", default="preview.png", metavar="PNG", help="where to write it [preview.png]")
    parser.add_argument("--views", metavar="PNG", help="draw views of the recipe's own images there as well")
    options, overrides = parser.parse_known_args(argv)

    from hf_essl.recipe import load_recipe
    from hf_essl.reporting.preview import preview, preview_views

    recipe = load_recipe(options.recipe, overrides)
    print(preview(recipe, options.output))
    if options.views:
        print(preview_views(recipe, options.views))
