"""A run on images without a recipe: what the words of the command mean, and from a plan to its recipe."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_essl.config import DataArguments
from hf_essl.config.packaged import find_recipe, packaged
from hf_essl.config.values import RecipeError, parse_overrides
from hf_essl.data.builtin import built_in
from hf_essl.data.survey import survey
from hf_essl.plan import Machine, Plan, make_plan, run_folder_of
from hf_essl.recipe import Recipe, build_recipe, load_recipe
from hf_essl.run_folder import RECIPE
from hf_essl.training.batch_size import largest_batch


def is_recipe(name: str) -> bool:
    """Whether a word of the command line names a recipe, and not a dataset."""
    path = Path(name)
    if path.suffix.lower() in (".yaml", ".yml"):
        return True
    if path.exists():
        return path.is_file() and path.suffix == ""
    if built_in(name) is not None or path.is_absolute():
        return False
    try:
        find_recipe(name)
    except RecipeError:
        folders = {known.partition("/")[0] for known in packaged()}
        if "/" in name and name.partition("/")[0] not in folders:  # a Hub id, or a path that does not exist
            return False
        raise
    return True


def planned_recipe(dataset: str, words: Sequence[str]) -> Path | None:
    """The recipe of an interrupted run on a dataset that is to be resumed; None for a new run."""
    given = parse_overrides(words)
    path = Path(given.get("output_dir") or run_folder_of(dataset)) / RECIPE
    return path if given.get("resume_from_checkpoint") and path.exists() else None


def plan_run(dataset: str, words: Sequence[str], processes: int = 1, machines: int = 1) -> tuple[Plan, Recipe]:
    """The plan of a run on a dataset, and its recipe.

    Args:
        words: fields that the user has set, as words of a command line.
        processes, machines: that train together.

    Raises ValueError, in one line, for a dataset or a field that cannot work.
    """
    given = parse_overrides(words)
    if "dataset" in given:
        raise RecipeError(f"dataset is given twice, {dataset} and {given['dataset']}; leave out --dataset")
    if given.get("streaming"):
        raise RecipeError("streaming is true without a recipe; a stream has no length, write a recipe with max_steps")
    found = survey(_data_arguments(dataset, given))
    machine = Machine.here(bool(given.get("use_cpu")), processes, machines, given.get("cache_dir"))
    plan = make_plan(dataset, found, machine, given, None if machine.device == "cpu" else _largest_batch)
    return plan, build_recipe(plan.fields | given, dataset, ("pretrain", dataset, *words))


def recipe_of(name: str, words: Sequence[str]) -> Recipe:
    """The recipe of this name or path, or of the plan for a dataset. Raises ValueError as `plan_run` does."""
    return load_recipe(name, words) if is_recipe(name) else plan_run(name, words)[1]


def _largest_batch(fields: dict[str, Any]) -> int:
    """Tries batches on the GPU, with the fields chosen so far."""
    recipe = build_recipe({**fields, "lr_schedule": "constant", "resolution_schedule": "constant"}, "plan", ())
    recipe.check_network()
    return largest_batch(recipe.build_model(), recipe.views, recipe.training, recipe.data.image_size)


def _data_arguments(dataset: str, given: Mapping[str, Any]) -> DataArguments:
    """The data arguments of a survey."""
    names = DataArguments.__dataclass_fields__
    return DataArguments(**{"dataset": dataset, **{key: value for key, value in given.items() if key in names}})
