"""`hf-essl preview RECIPE`: draws the schedules of a recipe, and on request its views."""

from hf_essl.commands.parser import RecipeParser


def run(argv: list[str]) -> None:
    parser = RecipeParser("preview", "Draw learning rate, momentum, magnitude and resolution of a recipe (Fig. 2, 3).")
    parser.add_argument("--output", default="preview.png", metavar="PNG", help="path of the picture [preview.png]")
    parser.add_argument("--views", metavar="PNG", help="also draw views of the recipe's own images to this path")
    options, overrides = parser.parse_known_args(argv)

    from hf_essl.planned_run import recipe_of
    from hf_essl.reporting.preview import preview, preview_views
    from hf_essl.views.crops import describe_crops

    recipe = recipe_of(options.recipe, overrides)
    print(describe_crops(recipe.views, recipe.data.image_size))
    print(preview(recipe, options.output))
    if options.views:
        print(preview_views(recipe, options.views))
