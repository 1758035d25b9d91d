"""What recipes cost without training them: petaFLOPs in both conventions, their parts, and speed-ups."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hf_essl.common import table
from hf_essl.cost import Cost, FlopCounter, estimate_cost, steps_per_epoch
from hf_essl.data import count_training_images
from hf_essl.methods import SSLModel
from hf_essl.methods.backbone import LOADING, accepted_arguments
from hf_essl.recipe import Recipe
from hf_essl.reporting.metrics import petaflops_by_part
from hf_essl.schedules import Curriculum

PLAIN = "plain, equal epochs"
"""The counterpart of a recipe without a baseline: itself at full resolution and without a selection."""


@dataclass(frozen=True)
class Priced:
    """A recipe to price, and the baseline of its speed-ups with its name; None is `PLAIN`."""

    name: str
    recipe: Recipe
    baseline: tuple[str, Recipe] | None = None


@dataclass(frozen=True)
class CostRow:
    """The cost of a recipe, and its speed-ups over its baseline, whose epochs may differ."""

    name: str
    epochs: float
    cost: Cost
    over: str
    paper_speedup: float
    counted_speedup: float

    def to_dict(self) -> dict:
        """For JSON; `over_baseline_*` are the speed-ups over `baseline`, the others are over the plain recipe."""
        over = {"over_baseline_paper": self.paper_speedup, "over_baseline_counted": self.counted_speedup}
        named = {"recipe": self.name, "epochs": self.epochs, "baseline": self.over}
        return {**named, **dataclasses.asdict(self.cost), **over}


class CostEstimator:
    """Estimates the costs of recipes; recipes of the same model share one FLOP counter.

    Args:
        images: training images; by default those of each recipe's dataset.
        processes: GPUs that train together.
    """

    def __init__(self, images: int | None = None, processes: int = 1):
        self.images, self.processes = images, processes
        self._models: dict[str, tuple[SSLModel, FlopCounter]] = {}

    def estimate(self, recipe: Recipe) -> tuple[float, Cost]:
        """Epochs and cost of a recipe. Raises ValueError for an unknown backbone, or too few images for one step."""
        args = recipe.training
        here = args.per_device_train_batch_size * args.gradient_accumulation_steps
        per_step = args.total_batch_size or here * self.processes
        images = self.images or count_training_images(recipe.data)
        epoch = steps_per_epoch(images, per_step, args.dataloader_drop_last)
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)
        model, counter = self._model(recipe)
        curriculum = Curriculum.from_args(recipe.views, args)
        cost = estimate_cost(model, recipe.views, curriculum, steps, per_step, counter.under(recipe.views), images)
        return steps / epoch, cost

    def _model(self, recipe: Recipe) -> tuple[SSLModel, FlopCounter]:
        args, sizes = recipe.model, recipe.views.resolutions
        recipe.check_network()
        arguments = accepted_arguments(args.backbone, args.backbone_args, sizes)
        key = repr((args, arguments))
        if key not in self._models:
            with torch.device("meta"):
                model = SSLModel.from_timm(
                    args.backbone,
                    args.method,
                    backbone_args={key: value for key, value in arguments.items() if key not in LOADING},
                    method_args=args.method_args,
                    resolutions=sizes,
                )
            self._models[key] = model, FlopCounter(model)
        return self._models[key]


def compare_costs(recipes: Sequence[Priced], estimator: CostEstimator) -> list[CostRow]:
    """The cost of each recipe, and its speed-ups over its baseline."""
    rows = []
    for priced in recipes:
        epochs, cost = estimator.estimate(priced.recipe)
        over, paper, counted = PLAIN, cost.paper_speedup, cost.counted_speedup
        if priced.baseline is not None:
            over, baseline = priced.baseline
            _, reference = estimator.estimate(baseline)
            paper = reference.paper_petaflops / cost.paper_petaflops
            counted = reference.counted_petaflops / cost.counted_petaflops
        rows.append(CostRow(priced.name, epochs, cost, over, paper, counted))
    return rows


def cost_table(rows: Sequence[CostRow]) -> str:
    """A Markdown table in petaFLOPs: the paper's convention, then what torch counts, with its parts."""
    header = ["recipe", "epochs", "steps", "over", "paper: pF", "speed-up", "selection", "counted: pF", "speed-up"]
    lines = []
    names = list(dict.fromkeys(name for row in rows for name in petaflops_by_part(row.cost)))
    for row in rows:
        cost, parts = row.cost, dict.fromkeys(names, 0.0) | petaflops_by_part(row.cost)
        line = [row.name, f"{row.epochs:g}", f"{cost.steps:,}", row.over, _petaflops(cost.paper_petaflops)]
        line += [f"{row.paper_speedup:.2f} x", f"{cost.paper_selection_overhead:.1f} %"]
        line += [_petaflops(cost.counted_petaflops), f"{row.counted_speedup:.2f} x", *map(_petaflops, parts.values())]
        lines.append(line)
    return table([*header, *names], lines)


def _petaflops(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
