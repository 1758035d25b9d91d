"""What the trackers of `report_to` see of a run: its recipe, every logged metric, its views, and its backbone.

Trainer's own callbacks send what `SSLTrainer.log` gives them; here is what they cannot know. Only the main process
talks to a tracker.
"""

from __future__ import annotations

import copy
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import TrainerCallback
from transformers.integrations import integration_utils
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    TensorBoardCallback,
    TrackioCallback,
    WandbCallback,
    WandbLogModel,
)

from hf_essl.acceleration import whole_parameters
from hf_essl.files import write_text
from hf_essl.hub.public import without_paths
from hf_essl.methods import method_name
from hf_essl.recipe import trainer_fields

if TYPE_CHECKING:
    import numpy as np

    from hf_essl.trainer import SSLTrainer

RUN_ID = "wandb_run_id"
"""File of the output folder that holds the id of its W&B run."""
PICTURED_IMAGES = 3
ALWAYS_TOLD = ("seed", "bf16", "fp16", "gradient_accumulation_steps")
"""Of transformers' own arguments, those that are told whatever their value."""
NEVER_TOLD = re.compile(
    r".*token|hub_model_id|trackio_.*|report_to|run_name|resume_from_checkpoint|data_seed|use_cpu|disable_tqdm"
)
"""Names of accounts, and what describes the start of a process and no training."""


def check_trackers(report_to: str | Sequence[str]) -> None:
    """Raises ValueError for an unknown tracker, and for one whose package is not installed."""
    for name in [report_to] if isinstance(report_to, str) else report_to:
        if name in ("all", "none"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            choices = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(f"report_to is {name}; take all, none, or one or several of {choices}")
        installed = getattr(integration_utils, f"is_{name}_available", None)
        if installed is not None and not installed():
            raise ValueError(f"report_to is {name}, but {name} is not installed: pip install {name}")


def attach_trackers(trainer: SSLTrainer) -> None:
    """Names the run, puts our callbacks of W&B and Trackio in the place of transformers', and adds the pictures."""
    callbacks, args = trainer.callback_handler.callbacks, trainer.args
    if not any(isinstance(callback, tuple(INTEGRATION_TO_CALLBACK.values())) for callback in callbacks):
        return
    args.run_name = args.run_name or args.folder.resolve().name
    for place, callback in enumerate(callbacks):
        if type(callback) in OURS:
            callbacks[place] = OURS[type(callback)](trainer)
    trainer.add_callback(ViewPicturesCallback(trainer))


# ---- the configuration ----


def run_config(trainer: SSLTrainer) -> dict[str, Any]:
    """The recipe of a run as one flat mapping, without tokens, accounts and absolute paths.

    It holds the fields of the four groups; of transformers' own arguments those that differ from their default.
    """
    model, args = trainer.model, trainer.args
    described: Any = getattr(model.backbone, "pretrained_cfg", {})  # by timm
    always = {name: getattr(args, name) for name in ALWAYS_TOLD}
    told = {key: value for key, value in trainer_fields(trainer).items() if not NEVER_TOLD.fullmatch(key)}
    return {
        "method": method_name(model),
        "backbone": described.get("architecture", type(model.backbone).__name__),
        **without_paths(always | told),
        "dataset": trainer.train_dataset.name,
        "processes": args.world_size,
        "backbone_parameters": sum(p.numel() for p in model.backbone.parameters()),
    }


# ---- Weights & Biases ----


class WandbRunCallback(WandbCallback):
    """One W&B run a training: a resumed one goes on in the same run, a fresh one in the same folder begins its own.

    `WANDB_LOG_MODEL` (end or checkpoint) logs the exported backbone alone as an artifact, without heads and teacher.
    `WANDB_PROJECT` or `project` names the project. A run that the user has started is taken as it is and left open.
    """

    _open: ClassVar[Any] = None  # the run that this class has started; one of a trainer that failed may be left over

    def __init__(self, trainer: SSLTrainer):
        super().__init__()
        self.trainer = trainer

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self._close(failed=False)
            if state.is_world_process_zero:
                (args.folder / RUN_ID).unlink(missing_ok=True)
        if not self._initialized:
            self.setup(args, state, model)

    def setup(self, args, state, model, **kwargs):
        """Starts the run, or goes on with the one of the output folder, and tells it the recipe.

        Raises ValueError where W&B does not start, for want of a login for instance.
        """
        self._initialized = True
        if not state.is_world_process_zero:
            return
        if self._wandb.run is not None and self._wandb.run is WandbRunCallback._open:
            self._wandb.finish(exit_code=1)  # of another trainer, which ended by an exception
        if self._wandb.run is None:
            WandbRunCallback._open = self._start(args, state)
        self._wandb.config.update(run_config(self.trainer), allow_val_change=True)
        self._wandb.define_metric("train/global_step")
        self._wandb.define_metric("*", step_metric="train/global_step", step_sync=True)

    def _start(self, args, state) -> Any:
        try:
            return self._wandb.init(
                project=os.getenv("WANDB_PROJECT", args.project),
                name=state.trial_name or args.run_name,
                group=args.run_name if state.trial_name else None,
                id=stored_run_id(args.folder / RUN_ID, os.getenv("WANDB_RUN_ID") or secrets.token_hex(4)),
                resume="allow",
                settings=self._wandb.Settings(max_end_of_run_history_metrics=0, max_end_of_run_summary_metrics=0),
            )
        except self._wandb.Error as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"report_to is wandb, which does not start: {reason}; run `wandb login`, set WANDB_MODE=offline, or "
                f"drop report_to"
            ) from error

    def on_save(self, args, state, control, **kwargs):
        if self._log_model == WandbLogModel.CHECKPOINT:
            self._log_backbone(state, f"step_{state.global_step}")

    def on_train_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        if self._log_model.is_enabled:
            self._log_backbone(state, "final")
        self._close(failed=bool(self.trainer.alarm.lost or self.trainer.stop_on_signal.received))

    def _log_backbone(self, state, alias: str) -> None:
        trainer = self.trainer
        metrics: dict[str, Any] = {}
        for entry in state.log_history:
            metrics |= {key: value for key, value in entry.items() if key.startswith("eval_")}
        with whole_parameters(trainer.model), tempfile.TemporaryDirectory() as folder:  # all processes, one logs
            if not state.is_world_process_zero:
                return
            exported = trainer.export_backbone(Path(folder) / "backbone")
            metadata = {"step": state.global_step, "petaflops": state.total_flos / 1e15, **metrics}
            artifact = self._wandb.Artifact(f"backbone-{self._wandb.run.id}", type="model", metadata=metadata)
            for file in exported.iterdir():  # file by file: `add_dir` prints a line for each
                artifact.add_file(str(file))
            self._wandb.run.log_artifact(artifact, aliases=[alias])

    def _close(self, failed: bool) -> None:
        """Ends the run that this class has started; logs that follow go on in it again."""
        if self._wandb.run is not None and self._wandb.run is WandbRunCallback._open:
            self._wandb.finish(exit_code=int(failed))
            self._initialized = False
        WandbRunCallback._open = None


def stored_run_id(path: Path, fresh: str) -> str:
    """The id that a file holds; without the file it is written with a fresh one."""
    if not path.is_file():
        write_text(path, f"{fresh}\n")
    return path.read_text().strip()


# ---- Trackio ----


class TrackioRunCallback(TrackioCallback):
    """Trackio with the recipe as its config. A run is known by its name: `run_name`, or the output folder's."""

    def __init__(self, trainer: SSLTrainer):
        super().__init__()
        self.trainer = trainer

    def setup(self, args, state, model, **kwargs):
        told = copy.copy(args)
        told.to_dict = lambda: run_config(self.trainer)
        super().setup(told, state, model, **kwargs)


OURS: dict[type, Callable[[SSLTrainer], TrainerCallback]] = {
    WandbCallback: WandbRunCallback,
    TrackioCallback: TrackioRunCallback,
}


# ---- pictures ----


class ViewPicturesCallback(TrainerCallback):
    """Shows the trackers views of a step's own images: at the first step, and where the resolution has changed."""

    def __init__(self, trainer: SSLTrainer):
        self.trainer = trainer
        self._shown: int | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._shown = None

    def on_step_end(self, args, state, control, **kwargs):
        views, images = self.trainer.views, self.trainer.step_images()
        if not state.is_world_process_zero or views.resolution == self._shown or images is None:
            return
        from hf_essl.reporting.figures import tile_views

        self._shown = views.resolution
        with self.trainer.clock.paused():
            rows = images[:PICTURED_IMAGES].cpu()
            picture = tile_views(rows, views.args, views.resolution, views.magnitude, seed=args.seed)
            caption = f"{views.resolution} px, magnitude {views.magnitude:.2f}"
            for callback in self.trainer.callback_handler.callbacks:
                show_picture(callback, picture, caption, state.global_step)


def show_picture(callback: TrainerCallback, picture: np.ndarray, caption: str, step: int) -> None:
    """Gives a picture, uint8 H x W x 3, to the tracker of a callback, where it takes pictures."""
    if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
        callback.tb_writer.add_image("views", picture, step, dataformats="HWC")
    tracker = getattr(callback, "_wandb", None) or getattr(callback, "_trackio", None)
    if isinstance(callback, (WandbRunCallback, TrackioRunCallback)) and tracker is not None:
        tracker.log({"views": tracker.Image(picture, caption=caption), "train/global_step": step})
