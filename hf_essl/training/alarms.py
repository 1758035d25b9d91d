"""Alarms: a loss that is not finite and an embedding that collapses, reported early with the likely cause."""

import logging
import math
import statistics

from transformers import TrainerCallback

from hf_essl.methods import SSLModel

logger = logging.getLogger(__name__)

GRACE = 0.1  # first share of the run, in which a small spread or a loss near its trivial value is not yet a collapse
PATIENCE = 3  # consecutive logs that must show a collapse; a single one may be chance
NARROW_SPREAD, LOST_SPREAD = 0.05, 0.02  # std times sqrt(D), 1 on the whole sphere: below it, a warning, a lost run
LOWEST_RANK_PRETRAINED = 0.5  # of the RankMe at the start; from random weights see `SSLModel.lowest_rank`
FAR = 4  # times the loss of a collapsed network: a temperature that is too small, or steps that are too large
FLAT = (
    1 / 3
)  # of the rank of the embedding at the first log; healthy runs keep half of it, or are far from the trivial loss
NEAR_TRIVIAL = 2 / 3  # share of the way from the first loss to that of a collapsed network
TRIVIAL_LOSS = 0.001  # distance from the loss of a collapsed network that counts as collapsed, relative to its scale


class AlarmCallback(TrainerCallback):
    """Warns once about each kind of trouble, and stops a run that is lost if `on_divergence` is stop.

    It reads only the log, which is the same in all processes and part of a checkpoint: all processes decide alike, and
    so does a resumed run. The model knows the loss of a collapsed network, and what to try.
    """

    def __init__(self, model: SSLModel):
        self.model = model
        self.lost: str | None = None  # why the run was stopped
        self._reported: set[str] = set()

    def on_train_begin(self, args, state, control, **kwargs):
        self.lost = None
        self._reported = set()

    def on_log(self, args, state, control, logs=None, **kwargs):
        batch = state.train_batch_size or args.train_batch_size  # `auto_find_batch_size` may have reduced it
        images = batch * args.world_size  # that one loss compares: a forward pass in all processes
        fp16 = args.mixed_precision == "fp16"
        trouble = find_trouble(state.log_history, state.max_steps, self.model, images, fp16)
        for kind, message in trouble.items():
            if kind not in self._reported:
                self._reported.add(kind)
                if state.is_world_process_zero:
                    logger.warning("step %d: %s", state.global_step, message)
        lost = trouble.get("not finite") or trouble.get("collapsed")
        if lost and args.on_divergence == "stop" and not self.lost:
            self.lost = f"stopped at step {state.global_step}: {lost}; set on_divergence: warn to continue anyway"
            control.should_save = control.should_training_stop = True


def find_trouble(history: list[dict], max_steps: int, model: SSLModel, images: int, fp16: bool) -> dict[str, str]:
    """The troubles that `state.log_history` shows, by kind, with the likely cause; one loss compares `images`."""
    steps = [entry for entry in history if "loss" in entry]
    evaluations = [entry for entry in history if "eval_rankme" in entry]
    trouble = {}
    if steps and not math.isfinite(steps[-1]["loss"]):
        precision = ", or use bf16 instead of fp16" if fp16 else ""
        rate = steps[-1].get("learning_rate", math.nan)
        trouble["not finite"] = f"the loss is {steps[-1]['loss']}; lower learning_rate (now {rate:.3g}){precision}"
    late = [entry for entry in steps[-PATIENCE:] if entry["step"] > GRACE * max_steps]
    if len(late) == PATIENCE:
        trouble |= _find_collapse(late, model, images) | _find_flattening(steps[0], late, model, images)
    is_pretrained = model.config is not None and model.config.pretrained
    lowest = min(LOWEST_RANK_PRETRAINED, model.lowest_rank) if is_pretrained else model.lowest_rank
    if len(evaluations) > 1 and evaluations[-1]["eval_rankme"] < lowest * evaluations[0]["eval_rankme"]:
        first, last = evaluations[0]["eval_rankme"], evaluations[-1]["eval_rankme"]
        fell = f"RankMe fell from {first:.1f} to {last:.1f}"
        trouble["rank"] = f"{fell}: the features lose dimensions; {model.collapse_hint}"
    return trouble


def _find_collapse(entries: list[dict], model: SSLModel, images: int) -> dict[str, str]:
    widest = max(entry.get("embedding_spread", math.inf) for entry in entries)
    spread, hint = f"(spread {widest:.3f}, healthy near 1)", model.collapse_hint
    if widest < LOST_SPREAD:
        return {"collapsed": f"the embedding has collapsed to a point {spread}; {hint}"}
    trouble = {}
    if widest < NARROW_SPREAD:
        trouble["narrow"] = f"the embedding is collapsing {spread}; {hint}"
    trivial = model.loss_at_collapse(images)
    if trivial is not None and 0 < FAR * trivial < min(entry["loss"] for entry in entries):
        far = (
            f"the loss is {entries[-1]['loss']:.3g}, {FAR} times that of a network that knows nothing ({trivial:.3g})"
        )
        trouble["far"] = f"{far}; raise the temperature in method_args, or {hint}"
    if trivial is not None:
        tolerance = TRIVIAL_LOSS * (abs(trivial) or 1.0)
        if all(abs(entry["loss"] - trivial) < tolerance for entry in entries):
            stays = f"the loss stays at {entries[-1]['loss']:.3f}"
            trouble["trivial"] = f"{stays}, that of a network that maps all images to one point; {hint}"
    return trouble


def _find_flattening(first: dict, entries: list[dict], model: SSLModel, images: int) -> dict[str, str]:
    """A collapse onto few dimensions, which BatchNorm hides from the spread.

    Only of methods whose loss rewards it; the others reach a low rank and a similar loss early in healthy runs.
    """
    trivial, started = model.loss_at_collapse(images), first.get("embedding_rank", 0.0)
    ranks = [entry.get("embedding_rank", math.inf) for entry in entries]
    loss = statistics.fmean(entry["loss"] for entry in entries)
    if not model.minimized_by_collapse or trivial is None:
        return {}
    if max(ranks) >= FLAT * started or not _is_near(loss, first["loss"], trivial):
        return {}
    fell = f"the embedding's effective rank fell from {started:.1f} to {ranks[-1]:.1f} at a loss of {loss:.2f}"
    return {"flat": f"{fell}, near that of a collapsed network ({trivial:.2f}); {model.collapse_hint}"}


def _is_near(loss: float, first: float, trivial: float) -> bool:
    return abs(loss - trivial) <= (1 - NEAR_TRIVIAL) * abs(first - trivial)
