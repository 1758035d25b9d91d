"""`hf-essl benchmark RECIPE`: images/s of each part of a training step, at each resolution."""

import sys

from hf_essl.commands.parser import RecipeParser, whole


def run(argv: list[str]) -> None:
    """Prints a table in Markdown and writes a picture, and the figures as JSON next to it."""
    parser = RecipeParser(
        "benchmark",
        "Measure images/s of decoding, views, selection, forward pass, backward pass and optimizer, and of the whole\n"
        "training, at each resolution of a recipe. The limit is the network on views that are already on the device.",
    )
    parser.add_argument("--steps", type=whole(1), default=5, metavar="N", help="consecutive timed steps [5]")
    parser.add_argument("--rounds", type=whole(1), default=3, metavar="N", help="repetitions, of which the median [3]")
    parser.add_argument("--output", default="benchmark.png", metavar="PNG", help="the picture [benchmark.png]")
    options, overrides = parser.parse_known_args(argv)

    from hf_essl.benchmark import benchmark
    from hf_essl.planned_run import recipe_of
    from hf_essl.reporting.figures import png_path
    from hf_essl.reporting.throughput import speed_table, write_speeds

    path = png_path(options.output)
    recipe = recipe_of(options.recipe, overrides)
    found = benchmark(recipe, options.steps, options.rounds, lambda line: print(line, file=sys.stderr, flush=True))
    print(f"{found.describe()}\n\n{speed_table(found)}\n")
    print(f"wrote {', '.join(str(written) for written in write_speeds(found, path))}")
