"""The results of a benchmark as a table, a picture and JSON."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_essl.common import table, write_text
from hf_essl.reporting.figures import BLUE, GREY, PALETTE, RED, save_figure
from hf_essl.schedules import Size

PARTS = ("decode", "candidates", "views", "selection", "forward", "backward", "optimizer")
"""Parts of a step, timed one after the other; a GPU overlaps them, so their sum is more than a step. `candidates` are
the views to compare, `selection` is their forward pass, and `views` are those that train."""
STYLES: dict[str, Literal["-", ":"]] = {"whole": "-", "limit": ":"}


@dataclass(frozen=True)
class StageSpeed:
    """One resolution of a recipe, with one share of the patch tokens.

    Args:
        tokens: the share that a ViT sees; 1 without a curriculum of tokens.
        share: of the run's steps.
        seconds: per step, by name: each of `PARTS` (no candidates and selection if the recipe compares none);
            `kornia`, the views by kornia's executor; `whole`, the training as it runs; `bare`, forward, backward and
            optimizer on existing views; `limit`, the same plus the selection among existing small views: all the work
            of the network.
    """

    resolution: int
    tokens: float
    share: float
    seconds: dict[str, float]

    @property
    def name(self) -> str:
        return str(Size(self.resolution, self.tokens))

    @property
    def of_limit(self) -> float:
        """Images per second of the whole step relative to the limit."""
        return self.seconds["limit"] / self.seconds["whole"]


@dataclass(frozen=True)
class Benchmark:
    """The results of `hf_essl.benchmark.benchmark`, and the settings that distinguish it from another benchmark."""

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
        """Images per second of the whole run relative to the limit; each stage has its share of the steps."""
        limit, whole = (sum(s.share * s.seconds[name] for s in self.stages) for name in ("limit", "whole"))
        return limit / whole

    @property
    def parts(self) -> list[str]:
        """Those of `PARTS` that the recipe has."""
        return [name for name in PARTS if name in self.stages[0].seconds]

    def images_per_second(self, stage: StageSpeed) -> dict[str, float]:
        return {name: self.batch_size / seconds for name, seconds in stage.seconds.items()}

    def describe(self) -> str:
        """The settings in one line."""
        return (
            f"{self.recipe}: {self.method} on {self.backbone}, batch size {self.batch_size}, cache {self.cache}, "
            f"{self.workers} workers, {self.device}, {self.threads} threads; median of {self.rounds} x {self.steps} "
            f"steps, images/s"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        stages = [
            dataclasses.asdict(s) | {"images_per_second": self.images_per_second(s), "of_limit": s.of_limit}
            for s in self.stages
        ]
        return {**dataclasses.asdict(self), "stages": stages, "of_limit": self.of_limit}


def write_speeds(found: Benchmark, path: Path) -> tuple[Path, Path]:
    """Writes the picture to `path` and the figures as JSON next to it; returns both paths."""
    facts = write_text(path.with_suffix(".json"), json.dumps(found.to_dict(), indent=2))
    return save_figure(draw_speeds(found), path), facts


def speed_table(found: Benchmark) -> str:
    """A Markdown table of images/s with one row per resolution; the last column is the whole step over the limit."""
    titles = {**{name: name for name in found.parts}, "kornia": "views by kornia", "whole": "whole"}
    if "selection" in titles:
        titles["bare"] = "bare step"
    titles["limit"] = "limit"
    rows = []
    for stage in found.stages:
        speeds = found.images_per_second(stage)
        cells = [f"{speeds[name]:,.0f}" for name in titles]
        rows.append([stage.name.removesuffix(" px"), f"{stage.share:.0%}", *cells, f"{stage.of_limit:.2f}"])
    rows.append(["run", "", *[""] * len(titles), f"{found.of_limit:.2f}"])
    return table(["px", "share of steps", *titles.values(), "of limit"], rows)


def draw_speeds(found: Benchmark) -> Figure:
    """Two panels by resolution: images/s of the whole step next to the limit, and milliseconds per image by part."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    rates, times = figure.subplots(1, 2)
    figure.suptitle(found.describe(), fontsize=10)
    _draw_rates(rates, found)
    _draw_times(times, found)
    for axis in (rates, times):
        axis.set_xticks(range(len(found.stages)), [stage.name for stage in found.stages])
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
        axis.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    return figure


def _draw_rates(axis: Axes, found: Benchmark) -> None:
    styles = {"whole": (-0.2, RED, "training as it runs"), "limit": (0.2, BLUE, "limit: the network only")}
    for name, (offset, color, label) in styles.items():
        heights = [found.images_per_second(stage)[name] for stage in found.stages]
        bars = axis.bar([i + offset for i in range(len(heights))], heights, 0.36, color=color, label=label)
        if name == "whole":
            axis.bar_label(bars, [f"{stage.of_limit:.0%}" for stage in found.stages], fontsize=9, padding=2)
    axis.set_ylabel("images/s")
    axis.set_title(f"Throughput, {found.of_limit:.0%} of the limit over the run", fontsize=10)
    axis.margins(y=0.12)
    axis.legend(frameon=False, fontsize=9)


def _draw_times(axis: Axes, found: Benchmark) -> None:
    per_image, places = 1000 / found.batch_size, range(len(found.stages))
    bottom = [0.0] * len(places)
    for name, color in zip(found.parts, PALETTE, strict=False):
        heights = [per_image * stage.seconds[name] for stage in found.stages]
        axis.bar(places, heights, 0.6, bottom=bottom, color=color, label=name)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    for name, style in STYLES.items():
        levels = [per_image * stage.seconds[name] for stage in found.stages]
        axis.hlines(levels, [i - 0.4 for i in places], [i + 0.4 for i in places], "black", style, label=name)
    axis.set_ylabel("ms per image")
    axis.set_title("Parts of a step, one after the other; lines: a step as it runs, and the limit", fontsize=10)
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
