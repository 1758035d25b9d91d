"""`--budget`: the length of a run from the time or the operations that it may take."""

import re
import statistics
import time
from copy import deepcopy
from dataclasses import dataclass, replace

import psutil
import torch

from hf_essl.config.values import RecipeError
from hf_essl.data import Images, load_images
from hf_essl.pretrain import build_trainer
from hf_essl.recipe import Recipe, build_recipe
from hf_essl.reporting.costs import CostEstimator
from hf_essl.trainer import SSLTrainer
from hf_essl.training.eta import times_left
from hf_essl.training.layout import disable_malloc_trim
from hf_essl.training.optimizer import build_optimizer
from hf_essl.training.step import endless, run_step

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "pF": 0.0, "epochs": 0.0}
WARMUP, TIMED = 4, 12  # steps at each resolution: not timed, timed
CLOSING = 3.0  # seconds for pictures and the export at the end
PLAIN_STEPS = 7  # at the end, which measure the speed-up


@dataclass(frozen=True)
class Budget:
    """An amount of seconds, petaFLOPs (`pF`, counted) or epochs."""

    amount: float
    unit: str  # seconds, pF or epochs

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """From `30min`, `2h`, `90s`, `5pF` or `300epochs`. Raises RecipeError for anything else."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|pF|epochs)", text.strip())
        if not found or float(found[1]) <= 0:
            raise RecipeError(f"budget is {text!r}; write a time, petaFLOPs or epochs: 30min, 2h, 90s, 5pF, 300epochs")
        amount, unit = float(found[1]), found[2]
        return cls(amount * UNITS[unit], "seconds") if UNITS[unit] else cls(amount, unit)


@dataclass(frozen=True)
class Speed:
    """Measured seconds: of a step, as the mean over the curriculum and at full resolution, and of an evaluation.

    `once` is what comes before the first step: a teacher that sees whole images.
    """

    step: float
    full_step: float
    evaluation: float
    once: float = 0.0


def fit_budget(recipe: Recipe, budget: Budget) -> tuple[Recipe, Images | None, str]:
    """The recipe with the epochs that the budget allows, its images if they were loaded, and how it was computed.

    Warm-up and the intervals of evaluations keep their share of the run. A time is that of this whole process, with
    its start, loading and the report; it is predicted from steps at each resolution, measured before.

    Raises RecipeError for a budget of less than one epoch, and for several processes with a time.
    """
    images = None
    epochs, cost = CostEstimator().estimate(recipe)
    if budget.unit == "epochs":
        wanted, why = budget.amount, "as asked"
    elif budget.unit == "pF":
        once = cost.counted_once_petaflops  # of a teacher that sees whole images
        per_epoch = (cost.counted_petaflops - once) / epochs
        wanted = (budget.amount - once) / per_epoch
        why = f"{per_epoch:.4g} petaFLOPs per epoch" + (f", {once:.4g} before the first" if once > 0 else "")
    else:
        if recipe.training.world_size > 1:
            raise RecipeError("a budget of time is measured in one process; give pF or epochs with several")
        images = load_images(recipe.data, recipe.training.device)
        silent = replace(recipe.training, report_to="none", push_to_hub=False)  # a tracker would start a run
        speed = measure(build_trainer(replace(recipe, training=silent), images))
        per_epoch = speed.step * cost.steps / epochs
        around = _seconds_so_far() + speed.once + CLOSING + PLAIN_STEPS * speed.full_step
        every = recipe.training.knn_every_epochs / epochs
        wanted, evaluations = _most_epochs(budget.amount - around, per_epoch, speed.evaluation, every)
        why = (
            f"{per_epoch:.3g} s per epoch and {evaluations} evaluations of {speed.evaluation:.2g} s, measured; "
            f"{around:.0f} s for the start and the end"
        )
    if wanted < 1:
        raise RecipeError(f"the budget is too small for one epoch ({why}); raise it, or use fewer images or pixels")
    return with_epochs(recipe, wanted, epochs), images, f"{wanted:.4g} epochs: {why}"


def _seconds_so_far() -> float:
    """Since this process started."""
    return time.time() - psutil.Process().create_time()


def _most_epochs(seconds: float, per_epoch: float, evaluation: float, share: float) -> tuple[float, int]:
    """The epochs that fit into `seconds`, in steps of a hundredth, and their evaluations.

    Args:
        per_epoch, evaluation: seconds of an epoch, and of an evaluation.
        share: of the run between two evaluations; 0 evaluates at the start and the end only.
    """
    for hundredths in range(int(100 * seconds / per_epoch), 99, -1):
        epochs = hundredths / 100
        evaluations = 2 + times_left(_interval(share, epochs), 0, epochs)
        if epochs * per_epoch + evaluations * evaluation <= seconds:
            return epochs, evaluations
    return 0.0, 2


def _interval(share: float, epochs: float) -> int:
    """Epochs between two evaluations; 0 for none."""
    return max(round(share * epochs), 1) if share else 0


def with_epochs(recipe: Recipe, wanted: float, before: float) -> Recipe:
    """The recipe with another number of epochs; what is counted in epochs or steps keeps its share of the run."""
    ratio, training = wanted / before, recipe.training
    changed = {
        "num_train_epochs": float(f"{wanted:.4g}"),
        "max_steps": -1,
        "warmup_epochs": float(f"{training.warmup_epochs * wanted / training.num_train_epochs:.4g}"),
        "knn_every_epochs": _interval(training.knn_every_epochs / before, wanted),
        "logging_steps": max(round(training.logging_steps * ratio), 1),
    }
    if training.save_strategy == "steps" and training.save_steps >= 1:
        changed["save_steps"] = max(round(training.save_steps * ratio), 1)
    again = [word for key, value in changed.items() for word in (f"--{key}", str(value))]
    return build_recipe(recipe.given | changed, recipe.source, (*recipe.words, *again))


def measure(trainer: SSLTrainer) -> Speed:
    """Times real steps at each size of the curriculum, on a copy of the model, and one evaluation."""
    if trainer.args.device.type == "cpu":
        disable_malloc_trim()  # as the training does
    model = deepcopy(trainer.model).train()
    optimizer, loader = build_optimizer(model, trainer.args), endless(trainer.get_train_dataloader())
    start = time.perf_counter()
    trainer.image_targets.fill(model, trainer.train_dataset, trainer.accelerator)
    once = time.perf_counter() - start
    mean, measured = 0.0, {}
    for size, share in trainer.curriculum.shares().items():
        trainer.views.resolution, trainer.views.tokens = size
        seconds = [_step(trainer, model, optimizer, next(loader)) for _ in range(WARMUP + TIMED)]
        measured[size] = statistics.fmean(seconds[WARMUP:])
        mean += share * measured[size]
    loader.close()
    start = time.perf_counter()
    trainer.evaluate()
    evaluation = time.perf_counter() - start
    return Speed(mean, measured[max(measured)], evaluation, once)


def _step(trainer: SSLTrainer, model, optimizer, inputs) -> float:
    start = time.perf_counter()
    batch = trainer.feed(inputs)
    with trainer.show_images(batch, model):
        with trainer.accelerator.autocast():
            chosen = trainer.hard_augment(model, batch["image"], batch["aspect"])
        views = trainer.render(batch["image"], chosen)
        run_step(model, views, optimizer, epoch=model.frozen_epochs, autocast=trainer.accelerator.autocast)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
