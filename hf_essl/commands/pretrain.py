"""`hf-essl pretrain RECIPE`: trains a backbone without labels."""

import os
import sys

from hf_essl.commands.parser import RecipeParser, add_launch_option


def run(argv: list[str]) -> None:
    """Loads the recipe with its overrides and trains it, in this process or under `accelerate launch`."""
    epilog = None
    if {"-h", "--help"} & set(argv):
        from hf_essl.recipe import describe_fields

        epilog = describe_fields()
    parser = RecipeParser(
        "pretrain", "Pretrain a backbone from a recipe. Every field of the recipe can be overridden.", epilog
    )
    add_launch_option(parser)
    options, overrides = parser.parse_known_args(argv)

    from hf_essl.recipe import load_recipe

    if options.accelerate_config:
        from hf_essl.commands.launch import find_config, launch_command, relaunch

        environment = dict(os.environ)  # before load_recipe, whose TrainingArguments may set variables
        command = launch_command(find_config(options.accelerate_config), [options.recipe, *overrides])
        load_recipe(options.recipe, overrides).check_network()  # report a mistake once, before any process starts
        relaunch(command, environment)
    recipe = load_recipe(options.recipe, overrides)
    recipe.check_network()
    if recipe.training.process_index == 0:
        print(f"loading {recipe.data.dataset} …", file=sys.stderr)

    from hf_essl.pretrain import pretrain

    pretrain(recipe)
