"""What a benchmark says: a table, a picture and JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_essl.common import write_text
from hf_essl.reporting.figures import BLUE, GREY, PALETTE, RED, save_figure

PARTS = ("decode", "views", "selection", "forward", "backward", "optimizer")
"""One after the other, each waited for: on a GPU their sum is more than a step, which overlaps them. `views` are those
that are compared and those that train, `selection` the forward pass of the former."""


@dataclass(frozen=True)
class StageSpeed:
    """One resolution of a recipe.

    seconds: of a step of the batch, by name: `PARTS` (no selection where the recipe has none); `kornia`, the views by
    kornia's executor; `whole`, the training as it runs; `bare`, forward, backward and optimizer on two views that
    are there; and `limit`, the same after a selection among small views that are there: all that the network does.
    """

    resolution: int
    share: float
    """Share of the run's steps at this resolution."""
    seconds: dict[str, float]

    @property
    def of_limit(self) -> float:
        """images/s of the whole over those of the limit."""
        return self.seconds["limit"] / self.seconds["whole"]


@dataclass(frozen=True)
class Benchmark:
    """What `benchmark` has measured, with what tells it from another."""

    recipe: str
    method: str
    backbone: str
    device: str
    threads: int
    workers: int
    cache: str
    torch: str
    batch_size: int
    steps: int
    rounds: int
    stages: tuple[StageSpeed, ...]

    @property
    def of_limit(self) -> float:
        """images/s over the whole run, with each stage's share of its steps, over those of the limit."""
        limit, whole = (sum(s.share * s.seconds[name] for s in self.stages) for name in ("limit", "whole"))
        return limit / whole

    def images_per_second(self, stage: StageSpeed) -> dict[str, float]:
        return {name: self.batch_size / seconds for name, seconds in stage.seconds.items()}

    def describe(self) -> str:
        """What was measured where, in one line."""
        return (
            f"{self.recipe}: {self.method} on {self.backbone}, batches of {self.batch_size}, cache {self.cache}, "
            f"{self.workers} workers, {self.device}, {self.threads} threads; medians of {self.rounds} x {self.steps} "
            f"steps, images/s"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        stages = [
            {
                **dataclasses.asdict(stage),
                "images_per_second": self.images_per_second(stage),
                "of_limit": stage.of_limit,
            }
            for stage in self.stages
        ]
        return {**dataclasses.asdict(self), "stages": stages, "of_limit": self.of_limit}


STYLES: dict[str, Literal["-", ":"]] = {"whole": "-", "limit": ":"}


def write_speeds(found: Benchmark, path: Path) -> tuple[Path, Path]:
    """Writes the picture to `path` and the figures as JSON beside it; returns both paths."""
    facts = write_text(path.with_suffix(".json"), json.dumps(found.to_dict(), indent=2))
    return save_figure(draw_speeds(found), path), facts


def speed_table(found: Benchmark) -> str:
    """A Markdown table of images/s, a row a resolution; the last column is the whole over the limit."""
    titles = {**{name: name for name in _parts(found)}, "kornia": "views by kornia", "whole": "whole"}
    if "selection" in titles:
        titles["bare"] = "bare step"
    names = [*titles, "limit"]
    lines = [["px", "share of steps", *titles.values(), "limit", "of limit"]]
    lines.append(["---"] * len(lines[0]))
    for stage in found.stages:
        speeds = found.images_per_second(stage)
        cells = [f"{speeds[name]:,.0f}" for name in names]
        lines.append([str(stage.resolution), f"{stage.share:.0%}", *cells, f"{stage.of_limit:.2f}"])
    lines.append(["run", "", *[""] * len(names), f"{found.of_limit:.2f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw_speeds(found: Benchmark) -> Figure:
    """Two panels by resolution: images/s of the whole beside the limit, and what an image takes part by part."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    rates, times = figure.subplots(1, 2)
    title = f"{found.recipe}  ·  {found.method}  ·  {found.backbone}  ·  batches of {found.batch_size}"
    figure.suptitle(f"{title}  ·  {found.device}, {found.threads} threads", fontsize=11)
    _draw_rates(rates, found)
    _draw_times(times, found)
    for axis in (rates, times):
        axis.set_xticks(range(len(found.stages)), [f"{stage.resolution} px" for stage in found.stages])
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
        axis.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    return figure


def _draw_rates(axis: Axes, found: Benchmark) -> None:
    for offset, name, color in ((-0.2, "whole", RED), (0.2, "limit", BLUE)):
        heights = [found.images_per_second(stage)[name] for stage in found.stages]
        label = {"whole": "the training as it runs", "limit": "limit: the network alone"}[name]
        bars = axis.bar([i + offset for i in range(len(heights))], heights, 0.36, color=color, label=label)
        if name == "whole":
            axis.bar_label(bars, [f"{stage.of_limit:.0%}" for stage in found.stages], fontsize=9, padding=2)
    axis.set_ylabel("images/s")
    axis.set_title(f"Throughput, {found.of_limit:.0%} of the limit over the run", fontsize=10)
    axis.margins(y=0.12)
    axis.legend(frameon=False, fontsize=9)


def _draw_times(axis: Axes, found: Benchmark) -> None:
    per_image = 1000 / found.batch_size
    bottom = [0.0] * len(found.stages)
    for name, color in zip(_parts(found), PALETTE, strict=False):
        heights = [per_image * stage.seconds[name] for stage in found.stages]
        axis.bar(range(len(heights)), heights, 0.6, bottom=bottom, color=color, label=name)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    places = range(len(found.stages))
    for name, style in STYLES.items():
        levels = [per_image * stage.seconds[name] for stage in found.stages]
        axis.hlines(levels, [i - 0.4 for i in places], [i + 0.4 for i in places], "black", style, label=name)
    axis.set_ylabel("ms per image")
    axis.set_title("Parts of a step, one after the other; lines: a step as it runs, and the limit", fontsize=10)
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _parts(found: Benchmark) -> list[str]:
    return [name for name in PARTS if name in found.stages[0].seconds]
