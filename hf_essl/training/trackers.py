"""What the trackers of `report_to` get from a run: its recipe, every logged metric, its views, and its backbone.

Trainer's own callbacks send what `SSLTrainer.log` gives them; the classes here add the rest. Only the main process
talks to a tracker. A `run` is the `SSLTrainer`, whose layer this one cannot import.
"""

import copy
import os
import re
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.integrations import CodeCarbonCallback, TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.integrations.integration_utils import WandbLogModel

from hf_essl.common import one_line, write_text
from hf_essl.compat import tracker_callbacks
from hf_essl.config.redact import without_paths
from hf_essl.methods import method_name
from hf_essl.methods.distributed import mean_over_processes
from hf_essl.methods.tokens import patch_count
from hf_essl.recipe import flat_fields, name_dataset
from hf_essl.schedules import Size
from hf_essl.training.energy import EnergyCallback
from hf_essl.training.layout import unsharded
from hf_essl.views.tiles import tile_views

RUN_ID = "wandb_run_id"  # file of the output folder with the id of its W&B run
PICTURED_IMAGES = 3
ALWAYS_SHOWN = ("seed", "bf16", "fp16", "gradient_accumulation_steps")  # of transformers' arguments, also as default
NEVER_SHOWN = re.compile(  # names of accounts, and settings of the process that do not describe the training
    r".*token|hub_model_id|trackio_.*|report_to|run_name|resume_from_checkpoint|data_seed|use_cpu|disable_tqdm"
)


def attach_trackers(run: Any) -> None:
    """Names the run, replaces transformers' callbacks with ours where we have one, and adds the pictures."""
    callbacks, args = run.callback_handler.callbacks, run.args
    if not any(isinstance(callback, tuple(tracker_callbacks().values())) for callback in callbacks):
        return
    args.run_name = args.run_name or args.folder.resolve().name
    for index, callback in enumerate(callbacks):
        if type(callback) in OURS:
            callbacks[index] = OURS[type(callback)](run, callback)
    run.add_callback(ViewPicturesCallback(run))


def energy_so_far(run: Any) -> dict[str, float]:
    """kWh and kgCO2e of all machines, if codecarbon measures them; call it on all processes."""
    meter = next((c for c in run.callback_handler.callbacks if isinstance(c, EnergyCallback)), None)
    if meter is None:
        return {}
    mean = mean_over_processes(torch.tensor(meter.read(), device=run.args.device))
    kwh, kg = (mean * run.args.world_size).tolist()
    return {"energy_kwh": kwh, "co2e_kg": kg}


def run_config(run: Any) -> dict[str, Any]:
    """The recipe of a run as one flat mapping, without tokens, accounts and absolute paths.

    It holds the fields of the four groups; of transformers' own arguments those that differ from their default.
    """
    model, args = run.model, run.args
    described: Any = getattr(model.backbone, "pretrained_cfg", {})  # by timm
    data = name_dataset(run.data_args, run.train_dataset.name)
    fields = {name: getattr(args, name) for name in ALWAYS_SHOWN}
    fields |= flat_fields(model.config, data, run.views.args, args)
    return {
        "method": method_name(model),
        "backbone": described.get("architecture", type(model.backbone).__name__),
        **without_paths({key: value for key, value in fields.items() if not NEVER_SHOWN.fullmatch(key)}),
        "dataset": run.train_dataset.name,
        "processes": args.world_size,
        "backbone_parameters": sum(p.numel() for p in model.backbone.parameters()),
    }


class WandbRunCallback(WandbCallback):
    """One W&B run per training: a resumed training continues its run, a new one in the same folder starts its own.

    `WANDB_LOG_MODEL` (end or checkpoint) logs the exported backbone as an artifact, without heads and teacher.
    `WANDB_PROJECT` or `project` names the project. A run that the user has already started is used and left open.
    """

    _open: ClassVar[Any] = None  # the run that this class started; a failed trainer may leave one

    def __init__(self, run: Any):
        super().__init__()
        self.run = run

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self._close(failed=False)
            if state.is_world_process_zero:
                (args.folder / RUN_ID).unlink(missing_ok=True)
        if not self._initialized:
            self.setup(args, state, model)

    def setup(self, args, state, model, **kwargs):
        """Starts the run, or continues the one of the output folder, and sends it the recipe.

        Raises:
            ValueError: if W&B does not start, for example without a login.
        """
        self._initialized = True
        if not state.is_world_process_zero:
            return
        if self._wandb.run is not None and self._wandb.run is WandbRunCallback._open:
            self._wandb.finish(exit_code=1)  # of another trainer, which raised an exception
        if self._wandb.run is None:
            WandbRunCallback._open = self._start(args, state)
        self._wandb.config.update(run_config(self.run), allow_val_change=True)
        self._wandb.define_metric("train/global_step")
        self._wandb.define_metric("*", step_metric="train/global_step", step_sync=True)

    def _start(self, args, state) -> Any:
        try:
            return self._wandb.init(
                project=os.getenv("WANDB_PROJECT", args.project),
                name=state.trial_name or args.run_name,
                group=args.run_name if state.trial_name else None,
                id=stored_run_id(args.folder / RUN_ID),
                resume="allow",
                settings=self._wandb.Settings(max_end_of_run_history_metrics=0, max_end_of_run_summary_metrics=0),
            )
        except self._wandb.Error as error:
            raise ValueError(
                f"report_to is wandb, which does not start: {one_line(error)}; run `wandb login`, set "
                f"WANDB_MODE=offline, or drop report_to"
            ) from error

    def on_save(self, args, state, control, **kwargs):
        if self._log_model == WandbLogModel.CHECKPOINT:
            self._log_backbone(state, f"step_{state.global_step}")

    def on_train_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        if self._log_model.is_enabled:
            self._log_backbone(state, "final")
        self._summarize(state)
        self._close(failed=self.run.was_stopped)

    def _summarize(self, state) -> None:
        """Writes the figures of the report into the summary of a run that has ended; call it on all processes."""
        if state.global_step < state.max_steps or self.run.model.config is None:
            return
        figures = self.run.figures()
        if state.is_world_process_zero and self._wandb.run is not None:
            self._wandb.run.summary.update({f"report/{name}": value for name, value in figures.items()})

    def _log_backbone(self, state, alias: str) -> None:
        metrics: dict[str, Any] = {}
        for entry in state.log_history:
            metrics |= {key: value for key, value in entry.items() if key.startswith("eval_")}
        with unsharded(self.run.model), tempfile.TemporaryDirectory() as folder:  # all processes, one logs
            if not state.is_world_process_zero:
                return
            exported = self.run.export_backbone(Path(folder) / "backbone")
            metadata = {"step": state.global_step, "petaflops": state.total_flos / 1e15, **metrics}
            artifact = self._wandb.Artifact(f"backbone-{self._wandb.run.id}", type="model", metadata=metadata)
            for file in exported.iterdir():  # file by file: `add_dir` prints a line for each
                artifact.add_file(str(file))
            self._wandb.run.log_artifact(artifact, aliases=[alias])

    def _close(self, failed: bool) -> None:
        """Ends the run that this class started; later logs continue it."""
        if self._wandb.run is not None and self._wandb.run is WandbRunCallback._open:
            self._wandb.finish(exit_code=int(failed))
            self._initialized = False
        WandbRunCallback._open = None


def stored_run_id(path: Path) -> str:
    """The id in a file; a missing file is created with a new one."""
    if not path.is_file():
        write_text(path, f"{os.getenv('WANDB_RUN_ID') or secrets.token_hex(4)}\n")
    return path.read_text().strip()


class TrackioRunCallback(TrackioCallback):
    """Trackio with the recipe as its config. It identifies a run by its name: `run_name`, or the output folder's."""

    def __init__(self, run: Any):
        super().__init__()
        self.run = run

    def setup(self, args, state, model, **kwargs):
        shown = copy.copy(args)
        shown.to_dict = lambda: run_config(self.run)
        super().setup(shown, state, model, **kwargs)


OURS: dict[type, Callable[[Any, Any], TrainerCallback]] = {  # from the run and transformers' callback
    WandbCallback: lambda run, _: WandbRunCallback(run),
    TrackioCallback: lambda run, _: TrackioRunCallback(run),
    CodeCarbonCallback: EnergyCallback,
}


class ViewPicturesCallback(TrainerCallback):
    """Sends the trackers views of a step's own images: at the first step, and when resolution or tokens change."""

    def __init__(self, run: Any):
        self.run = run
        self._shown: Size | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self._shown = None

    def on_step_end(self, args, state, control, **kwargs):
        views, images = self.run.views, self.run.step_log.images
        size = Size(views.resolution, views.tokens)
        if not state.is_world_process_zero or size == self._shown or images is None:
            return
        self._shown = size
        with self.run.clock.paused():
            rows, aspect = (part[:PICTURED_IMAGES].cpu() for part in (images, self.run.step_log.aspects))
            patches = patch_count(self.run.model.backbone, size.resolution) if size.tokens < 1 else None
            seen = {"seed": args.seed, "aspect": aspect, "tokens": size.tokens, "patches": patches}
            picture = tile_views(rows, views.args, size.resolution, views.magnitude, **seen)
            caption = f"{size}, magnitude {views.magnitude:.2f}"
            for callback in self.run.callback_handler.callbacks:
                show_picture(callback, picture, caption, state.global_step)


def show_picture(callback: TrainerCallback, picture: np.ndarray, caption: str, step: int) -> None:
    """Sends a picture, uint8 H x W x 3, to the tracker of a callback, if it accepts pictures."""
    if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
        callback.tb_writer.add_image("views", picture, step, dataformats="HWC")
    tracker = getattr(callback, "_wandb", None) or getattr(callback, "_trackio", None)
    if isinstance(callback, (WandbRunCallback, TrackioRunCallback)) and tracker is not None:
        tracker.log({"views": tracker.Image(picture, caption=caption), "train/global_step": step})
