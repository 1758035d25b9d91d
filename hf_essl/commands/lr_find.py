"""`hf-essl lr-find RECIPE`: the learning-rate range test of appendix C, as a picture and a suggestion."""

from hf_essl.commands.parser import RecipeParser, whole


def run(argv: list[str]) -> None:
    parser = RecipeParser("lr-find", "Train while the learning rate grows exponentially, and suggest a peak (Fig. 4).")
    parser.add_argument("--start", type=float, default=1e-3, metavar="LR", help="lowest learning rate [0.001]")
    parser.add_argument("--end", type=float, default=1.0, metavar="LR", help="highest learning rate [1]")
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="optimizer steps [200]")
    parser.add_argument(
        "--validation_images",
        "--validation-images",
        type=whole(0),
        default=4096,
        metavar="N",
        help="images for the validation loss after each step; 0 for none [4096, or all images if there are fewer]",
    )
    parser.add_argument("--output", default="lr_range.png", metavar="PNG", help="where to draw it [lr_range.png]")
    options, overrides = parser.parse_known_args(argv)

    from hf_essl.lr_finder import check_range, draw_lr_range, lr_range_test
    from hf_essl.planned_run import recipe_of
    from hf_essl.pretrain import build_trainer
    from hf_essl.reporting.figures import png_path

    check_range(options.start, options.end, options.steps)
    path = png_path(options.output)
    recipe = recipe_of(options.recipe, overrides)
    found = lr_range_test(
        build_trainer(recipe),
        start=options.start,
        end=options.end,
        steps=options.steps,
        validation_images=options.validation_images,
    )
    title = f"{recipe.model.method} · {recipe.model.backbone} · {recipe.data.dataset}"
    path = draw_lr_range(found, path, title)
    print(f"learning_rate: {found.suggestion:.2g}    # {found.remark}; wrote {path}")
