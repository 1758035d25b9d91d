"""`hf-essl pretrain RECIPE` or `hf-essl pretrain IMAGES`: trains a backbone without labels."""

import os
import secrets
import sys
from contextlib import nullcontext

from hf_essl.commands.parser import RecipeParser, add_launch_option
from hf_essl.common import CONTINUED_BY, SUPERVISED, Interrupted


def run(argv: list[str]) -> None:
    """Trains a recipe, or images by a plan, in this process or under `accelerate launch`."""
    options, overrides = _parser(with_fields=bool({"-h", "--help"} & set(argv))).parse_known_args(argv)
    from hf_essl.commands.launch import join_slurm_step

    join_slurm_step(os.environ)
    environment = dict(os.environ)  # before a recipe is built, whose TrainingArguments may set variables

    from hf_essl.planned_run import is_recipe

    if not is_recipe(options.recipe):
        _pretrain_images(options, overrides, environment)
        return
    if options.plan:
        raise ValueError(f"plan is given with the recipe {options.recipe}, whose settings are chosen; leave it out")
    from hf_essl.recipe import load_recipe

    recipe = load_recipe(options.recipe, overrides)
    if (
        "WANDB_SWEEP_ID" in environment and SUPERVISED not in environment
    ):  # an agent starts each run with other values of the same fields
        run_id = environment.get("WANDB_RUN_ID") or secrets.token_hex(4)
        overrides = [*overrides, "--output_dir", f"{recipe.training.output_dir}-{run_id}"]
        recipe = load_recipe(options.recipe, overrides)
    recipe.check_network()  # report a mistake once, before any process starts
    if options.accelerate_config:
        budget = ["--budget", options.budget] if options.budget else []
        words = [options.recipe, *overrides, *budget]
        _relaunch(options.accelerate_config, words, environment, recipe if budget else None)
    if recipe.training.process_index == 0:
        print(f"loading {recipe.data.dataset} …", file=sys.stderr)
    _pretrain(recipe, budget=options.budget)


def _parser(with_fields: bool) -> RecipeParser:
    epilog = None
    if with_fields:
        from hf_essl.recipe import describe_fields

        epilog = describe_fields()
    parser = RecipeParser(
        "pretrain",
        "Pretrain a backbone, from a recipe or from images alone (a folder, a Hub id, a parquet file). Without a\n"
        "recipe, every setting is chosen and printed with its reason. Every field can be overridden.",
        epilog,
        name="RECIPE|IMAGES",
        named="path of a YAML recipe, or the name of a packaged one, such as quickstart; or a folder of images, a "
        "parquet file or a Hub id",
    )
    parser.add_argument("--plan", action="store_true", help="without a recipe: only print the chosen settings")
    parser.add_argument(
        "--budget",
        metavar="AMOUNT",
        help="set the epochs by what the run may take: 30min, 2h, 5pF (petaFLOPs) or 300epochs",
    )
    add_launch_option(parser)
    return parser


def _pretrain_images(options, overrides: list[str], environment: dict[str, str]) -> None:
    """Plans a run on images and trains it; an interrupted one continues by the plan that it began with."""
    from hf_essl.budget import Budget, fit_budget
    from hf_essl.commands.launch import launch_here, launch_of
    from hf_essl.common import write_text
    from hf_essl.planned_run import plan_run, planned_recipe

    config = options.accelerate_config
    if (begun := planned_recipe(options.recipe, overrides)) is not None:
        if options.plan or options.budget:
            name = "plan" if options.plan else "budget"
            raise ValueError(f"{name} is given with resume_from_checkpoint; {begun} is the plan of the run; remove it")
        launched = ["--accelerate_config", config] if config else []
        run([str(begun), "--dataset", options.recipe, *overrides, *launched])
        return
    is_main = environment.get("RANK", "0") == "0"
    if is_main:
        print(f"surveying {options.recipe} …", file=sys.stderr)
    launch = launch_of(config) if config else launch_here(environment)
    if launch.on_cpu:
        overrides = [*overrides, "--use_cpu", "true"]  # the plan is for the device of the processes
    budget = Budget.parse(options.budget) if options.budget else None
    if budget and budget.unit == "seconds" and launch.processes > 1:
        raise ValueError("a budget of time is measured in one process; give pF or epochs with several")
    plan, recipe = plan_run(options.recipe, overrides, launch.processes, launch.machines)
    recipe.check_network()
    if is_main:
        print(plan.describe(), flush=True)
    if options.plan:
        if is_main:
            _print_cost(recipe, plan.images, launch.processes, budget)
        return
    if config:
        measured = ["--budget", options.budget] if budget and budget.unit == "seconds" else []
        if budget and not measured:
            recipe, _, why = fit_budget(recipe, budget)
            print(f"budget {options.budget}: {why}", flush=True)
        path = write_text(recipe.training.folder / "plan.yaml", recipe.to_yaml())
        _relaunch(config, [str(path), *measured], environment, recipe if budget else None)
    _pretrain(recipe, plan.survey.notices, options.budget)


def _print_cost(recipe, images: int, processes: int, budget) -> None:
    """The length and the cost of a plan; a budget of time is measured when the run starts."""
    from hf_essl.budget import fit_budget
    from hf_essl.reporting.costs import CostEstimator

    if budget and budget.unit == "seconds":
        print(
            "\nthe budget is a time: the run measures its speed first, and then sets the epochs, warm-up and intervals"
        )
        return
    if budget:
        recipe, _, why = fit_budget(recipe, budget)
        print(f"\nbudget: {why}")
    _, cost = CostEstimator(images, processes).estimate(recipe)
    print(
        f"\n{cost.steps:,} steps of {cost.images_per_step} images: {cost.counted_petaflops:.4g} petaFLOPs, "
        f"{cost.counted_speedup:.2f} x less than the plain recipe at equal epochs"
    )


def _relaunch(config: str, words: list[str], environment: dict[str, str], budgeted=None) -> None:
    """`budgeted` is the recipe of a run with a budget, which another command continues."""
    from hf_essl.commands.launch import find_config, launch_command, relaunch

    if budgeted is not None:
        again = f"{_continuing(budgeted)} --accelerate_config {config}"
        environment = {**environment, CONTINUED_BY: f"`{again}` continues from the last checkpoint"}
    relaunch(launch_command(find_config(config), words), environment)


def _continuing(recipe) -> str:
    return f"hf-essl pretrain {recipe.training.folder / 'recipe.yaml'} --resume_from_checkpoint true"


def _pretrain(recipe, seen: tuple[str, ...] = (), budget: str | None = None) -> None:
    from hf_essl.data.inventory import without_notices
    from hf_essl.pretrain import pretrain

    images = None
    with without_notices(seen) if seen else nullcontext():
        again = _continuing(recipe)
        if budget and recipe.training.resume_from_checkpoint:
            raise ValueError(
                f"budget is given with resume_from_checkpoint; the run has its length already, resume it by its own "
                f"recipe: {again}"
            )
        if budget:
            from hf_essl.budget import Budget, fit_budget

            recipe, images, why = fit_budget(recipe, Budget.parse(budget))
            print(f"budget {budget}: {why}", flush=True)
        try:
            pretrain(recipe, images)
        except Interrupted as stop:
            if budget:
                stop.continues = f"`{again}` continues from the last checkpoint"
            raise
