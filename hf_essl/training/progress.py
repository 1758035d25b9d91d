"""What a user watches while a run trains."""

import shutil
import sys
from collections.abc import Callable

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from hf_essl.schedules import Curriculum, Size
from hf_essl.training.clock import Clock
from hf_essl.training.eta import Eta, Pauses, duration, times_left

BAR = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
FIELDS = (
    ("loss", "loss {:.4f}"),
    ("resolution", "{:.0f} px"),
    ("images_per_second", "{:.0f} img/s"),
    ("learning_rate", "lr {:.4f}"),
    ("momentum", "mom {:.3f}"),
    ("magnitude", "mag {:.2f}"),
    ("tokens", "tokens {:.0%}"),
    ("weight_decay", "wd {:.3f}"),
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
        evaluate_every: epochs between two evaluations; 0: only at the start and the end.
    """

    def __init__(self, curriculum: Curriculum, flops: Callable[[Size], float], clock: Clock, evaluate_every: int):
        self.curriculum, self.flops, self.clock, self.evaluate_every = curriculum, flops, clock, evaluate_every
        self.last: float | None = None  # on the clock, at the end of the step before
        self.bar: tqdm | None = None
        self.eta: Eta | None = None  # of the main process
        self.pauses = Pauses(lambda: clock.paused_seconds)

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.last = None
        self.eta = Eta(self.curriculum, self.flops, state.max_steps)
        self.pauses = Pauses(lambda: self.clock.paused_seconds)
        if not args.disable_tqdm and (sys.stderr.isatty() or "ipykernel" in sys.modules):
            shown = {"desc": args.folder.name[:16], "bar_format": BAR, "dynamic_ncols": True}
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, **shown)

    def on_step_begin(self, args, state, control, **kwargs):
        if self.last is None:  # the clock of a resumed run is set after `on_train_begin`
            self.last = self.clock.seconds

    def on_step_end(self, args, state, control, **kwargs):
        if self.eta is None:
            return
        assert self.last is not None, "a step has begun"
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
            left = f"ETA {duration(seconds)}" if (seconds := self.seconds_left(args, state)) else ""
            self._write(fitting([f"{where:<{2 * len(str(state.max_steps)) + 6}}", left, *shown.values()]))
            if self.bar is not None:
                texts = [left, *(shown[key] for key in IN_BAR if key in shown)]
                self.bar.set_postfix_str(", ".join(filter(None, texts)))
        elif text := describe_evaluation({key: value for key, value in logs.items() if key.startswith("eval_")}):
            self._write(f"{where}  {text}")

    def on_evaluate(self, args, state, control, **kwargs):
        self.pauses.evaluated()

    def on_save(self, args, state, control, **kwargs):
        self.pauses.saved()

    def seconds_left(self, args, state) -> float | None:
        """Until the end of the training, with its evaluations and checkpoints; None before the first step."""
        steps = None if self.eta is None else self.eta.remaining(state.global_step)
        if not steps:
            return None
        epoch = state.epoch or 0
        epochs = epoch * state.max_steps / state.global_step
        evaluations = 1 + times_left(self.evaluate_every, epoch, epochs)
        if args.save_strategy == SaveStrategy.STEPS:
            saves = 1 + times_left(state.save_steps, state.global_step, state.max_steps)
        else:
            saves = 1 + times_left(1, epoch, epochs) if args.save_strategy == SaveStrategy.EPOCH else 0
        return steps + evaluations * self.pauses.evaluation + saves * self.pauses.checkpoint

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
