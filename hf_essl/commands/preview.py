"""`hf-essl preview RECIPE`: draws a recipe's schedules into one picture."""

from __future__ import annotations

from hf_essl.cli import RecipeParser


def run(argv: list[str]) -> None:
    """Writes the picture and prints its path."""
    parser = RecipeParser(
        "preview", "Draw the learning rate, momentum, magnitude and resolution of a recipe (Fig. 2, 3)."
    )
    parser.add_argument("--output", default="preview.png", metavar="PNG", help="where to write it [preview.png]")
    options, overrides = parser.parse_known_args(argv)

    from hf_essl.recipe import load_recipe
    from hf_essl.reporting.preview import preview

    print(preview(load_recipe(options.recipe, overrides), options.output))
