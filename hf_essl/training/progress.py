"""What a user watches while a run trains."""

import shutil
import sys
from collections.abc import Callable

from tqdm.auto import tqdm
from transformers import TrainerCallback

from hf_essl.schedules import Curriculum
from hf_essl.training.clock import Clock
from hf_essl.training.eta import Eta, Overhead, duration

BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
FIELDS = (
    ("loss", "loss {:.4f}"),
    ("resolution", "{:.0f} px"),
    ("images_per_second", "{:.0f} img/s"),
    ("learning_rate", "lr {:.4f}"),
    ("momentum", "mom {:.3f}"),
    ("magnitude", "mag {:.2f}"),
    ("embedding_std", "std {:.4f}"),
    ("petaflops", "{:.3g} pF"),
)
IN_BAR = ("loss", "resolution", "images_per_second")
WIDEST = 200  # characters of a line in a file


class ProgressBarCallback(TrainerCallback):
    """A bar of the main figures, and a line for each log above it; without a terminal or tqdm, the lines alone.

    Args:
        curriculum, flops: of the run, see `Eta`.
        clock: of the training.
    """

    def __init__(self, curriculum: Curriculum, flops: Callable[[int], float], clock: Clock):
        self.curriculum, self.flops, self.clock = curriculum, flops, clock
        self.last = 0.0  # on the clock, at the end of the step before
        self.bar: tqdm | None = None
        self.eta: Eta | None = None  # of the main process
        self.overhead: Overhead | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.eta = Eta(self.curriculum, self.flops, state.max_steps)
        self.overhead = None
        if not args.disable_tqdm and (sys.stderr.isatty() or "ipykernel" in sys.modules):
            shown = {"desc": args.folder.name[:16], "bar_format": BAR, "dynamic_ncols": True}
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, **shown)

    def on_step_begin(self, args, state, control, **kwargs):
        if self.overhead is None:  # the clock of a resumed run is set after `on_train_begin`
            self.overhead, self.last = Overhead(self.clock), self.clock.seconds

    def on_step_end(self, args, state, control, **kwargs):
        if self.eta is None:
            return
        self.eta.add(state.global_step - 1, self.clock.seconds - self.last)
        self.last = self.clock.seconds  # the next step begins with its batch
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.eta is None:
            return
        where = f"step {state.global_step}/{state.max_steps}"
        if "loss" in logs:
            shown = {key: form.format(logs[key]) for key, form in FIELDS if logs.get(key) is not None}
            left = f"ETA {duration(seconds)}" if (seconds := self.seconds_left(state.global_step)) else ""
            self._write(fitting([f"{where:<{2 * len(str(state.max_steps)) + 6}}", left, *shown.values()]))
            if self.bar is not None:
                texts = [left, *(shown[key] for key in IN_BAR if key in shown)]
                self.bar.set_postfix_str(", ".join(filter(None, texts)))
        elif text := describe_evaluation({key: value for key, value in logs.items() if key.startswith("eval_")}):
            self._write(f"{where}  {text}")

    def seconds_left(self, step: int) -> float | None:
        """Until the end of the run, with evaluations and checkpoints."""
        remaining = None if self.eta is None else self.eta.remaining(step)
        return None if remaining is None or self.overhead is None else remaining * self.overhead.factor

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
        self.bar = self.eta = None

    def _write(self, line: str) -> None:
        if self.bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self.bar.write(line, file=sys.stderr)


def fitting(parts: list[str]) -> str:
    """The parts in one line, without the last ones if the terminal is too narrow for them."""
    width = shutil.get_terminal_size().columns if sys.stderr.isatty() else WIDEST
    kept: list[str] = []
    for part in filter(None, parts):
        if kept and len("  ".join([*kept, part])) > width:
            break
        kept.append(part)
    return "  ".join(kept)


def describe_evaluation(metrics: dict) -> str:
    """An evaluation in one line, such as `kNN 84.1 %  feature std 0.0208  RankMe 61.3`."""
    fields = (
        ("knn_accuracy", "kNN {:.1f} %"),
        ("probe_accuracy", "probe {:.1f} %"),
        ("retrieval", "retrieval {:.1f} %"),
        ("feature_std", "feature std {:.4f}"),
        ("rankme", "RankMe {:.1f}"),
    )
    values = {key.split("_", 1)[-1]: value for key, value in metrics.items()}
    return "  ".join(form.format(values[key]) for key, form in fields if key in values)
