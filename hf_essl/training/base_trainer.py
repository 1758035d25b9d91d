"""The overrides of transformers.Trainer that have nothing to do with views: loaders, optimizer, checkpoints."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from hf_essl.compat import keep_batches_on_host, local_tensor
from hf_essl.config import SSLTrainingArguments
from hf_essl.config.fields import default_of
from hf_essl.config.resume import IMAGES, settings_hash
from hf_essl.data import StreamedImages
from hf_essl.evaluation.during_training import OnlineProbe
from hf_essl.manifest import begin, write_manifest
from hf_essl.methods import SSLModel
from hf_essl.methods.backbone import storable
from hf_essl.methods.distributed import mean_over_processes
from hf_essl.recipe import flat_fields, name_dataset
from hf_essl.run_folder import read_state as read_trainer_state
from hf_essl.schedules import CurveScheduler, WeightDecay, curve_from_args
from hf_essl.training.checkpoints import checkpoint_bytes, find_checkpoint, rotate, saving
from hf_essl.training.clock import Clock
from hf_essl.training.optimizer import averaged_weights, build_optimizer, clip_gradients
from hf_essl.training.plain_state import explained, read_state, write_state
from hf_essl.training.run_state import RunState, check_weights
from hf_essl.training.safe_checkpoints import SafeCheckpointTrainer
from hf_essl.training.step_log import StepLog
from hf_essl.training.trackers import energy_so_far

logger = logging.getLogger(__name__)

PROBE = "online_probe.safetensors"  # the probe's file in a checkpoint


class BaseTrainer(SafeCheckpointTrainer):
    """A transformers.Trainer with a curve of learning rate and momentum, which saves finite weights only."""

    args: SSLTrainingArguments
    model: SSLModel
    train_dataset: Any
    data_args: Any
    views: Any
    optimizer: Any
    lr_scheduler: Any
    clock: Clock
    step_log: StepLog
    image_targets: Any
    online_probe: OnlineProbe | None
    run_state: RunState  # of the checkpoint that the training started from
    is_finished = False  # whether nothing was left to train

    def get_train_dataloader(self) -> DataLoader:
        """The loader of the training images; a stream splits itself over the processes."""
        if self.train_dataset is None:
            raise ValueError("train_dataset is missing; pass the images to train on to SSLTrainer")
        if isinstance(self.train_dataset, StreamedImages):
            return DataLoader(
                self.train_dataset.for_process(self.args.process_index, self.args.world_size, self.args.data_seed),
                batch_size=self.args.train_batch_size,
                num_workers=self.args.dataloader_num_workers,
                prefetch_factor=self.args.dataloader_prefetch_factor,
                pin_memory=self.args.dataloader_pin_memory,
                persistent_workers=self.args.dataloader_persistent_workers,
                multiprocessing_context=self.args.dataloader_multiprocessing_context,
                in_order=self.args.dataloader_in_order,
                collate_fn=self.data_collator,
            )
        return keep_batches_on_host(super().get_train_dataloader(), self.args.seed)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The optimizer of the run, see `build_optimizer`."""
        if self.optimizer is None:
            self.optimizer = build_optimizer(model or self.model, self.args, fused=not self.is_fsdp_enabled)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """The curve of `args.lr_schedule` over the whole run, the writer of learning rate, momentum and decay."""
        if self.lr_scheduler is None:
            momenta = (self.args.min_momentum, self.args.max_momentum)
            curve = curve_from_args(self.args, num_training_steps)
            beta, name = self.args.adam_beta1, self.args.lr_schedule
            if curve.cycles_momentum and beta != default_of(type(self.args), "adam_beta1"):
                logger.warning("adam_beta1 is %g and has no effect: %s cycles it from %g to %g", beta, name, *momenta)
            decay = self.weight_decay_over(num_training_steps)
            self.lr_scheduler = CurveScheduler(optimizer or self.optimizer, curve, momenta, weight_decay=decay)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def weight_decay_over(self, steps: int) -> WeightDecay | None:
        """The schedule of the weight decay; None if it is constant."""
        end = self.args.weight_decay_end
        return None if end is None else WeightDecay(self.args.weight_decay, end, steps)

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        batches = len(self.get_train_dataloader())
        per_epoch = max(math.ceil(batches / self.args.gradient_accumulation_steps), 1)
        return math.ceil(self.args.num_train_epochs * per_epoch)

    # ---- overrides of transformers (private names) ----

    def _clip_grad_norm(self, model):
        if not self.args.clip_each_parameter:
            return super()._clip_grad_norm(model)
        norm = self.accelerator.clip_grad_norm_(model.parameters(), math.inf)  # of all, and unscales those of fp16
        clip_gradients(model, self.args)
        return norm

    def _build_accelerator_args(self, **kwargs) -> dict[str, Any]:
        arguments = super()._build_accelerator_args(**kwargs)
        arguments.pop("dynamo_plugin", None)  # it compiles the whole model; `compile_backbones` only the backbone
        return arguments

    def set_initial_training_values(self, args, dataloader):
        values = super().set_initial_training_values(args, dataloader)
        if not self.is_finished:
            return values
        _, steps_per_epoch, *others = values
        return self.run_state.step // steps_per_epoch, steps_per_epoch, *others  # no epoch is left

    def _init_training_state(self, max_steps, *others):
        found = super()._init_training_state(max_steps, *others)
        self.state.compute_steps(self.args, max_steps)  # those of a checkpoint would be used otherwise
        return found

    def _update_auto_batch_size(self, batch_size) -> None:
        """An attempt that ran out of memory leaves nothing in the figures of the run."""
        self.step_log.clear()
        self.current_flos = self.image_targets.flops
        super()._update_auto_batch_size(batch_size)

    def _save_checkpoint(self, model, trial) -> None:
        if not is_finite(self.model):
            logger.warning("step %d: no checkpoint is saved because weights are not finite", self.state.global_step)
            return  # the last good checkpoint remains the last
        with (
            self.clock.paused(),
            averaged_weights(self.optimizer),
            self._whole_checkpoint(Path(self._get_output_dir(trial))),
            self._intervals_as_asked(),
        ):
            super()._save_checkpoint(model, trial)

    @contextmanager
    def _intervals_as_asked(self) -> Iterator[None]:
        """`LogOftenCallback` shortens the interval in the state; a resume would warn that the user changed it."""
        shortened = self.state.logging_steps
        self.state.logging_steps = self.args.logging_steps  # type: ignore[assignment]  # may be a share of the run
        try:
            yield
        finally:
            self.state.logging_steps = shortened

    @contextmanager
    def _whole_checkpoint(self, run: Path) -> Iterator[None]:
        """The block saves a checkpoint, which then gets its manifest; only then are older ones deleted."""
        folder, writes = run / f"checkpoint-{self.state.global_step}", self.args.should_save
        now, limit = self.current_state(), self.args.save_total_limit
        self.args.save_total_limit = None
        try:
            with saving(folder, checkpoint_bytes(self.model, self.args)) if writes else nullcontext():
                if writes:
                    begin(folder)
                    now.write(folder)
                self.accelerator.wait_for_everyone()
                yield
                self.accelerator.wait_for_everyone()  # until each has written its random state
                if writes:
                    write_manifest(folder, now.step, settings_hash(now.settings))
        finally:
            self.args.save_total_limit = limit
        if writes:
            rotate(run, folder, limit, self.state.best_model_checkpoint)

    def settings(self) -> dict[str, Any]:
        """The fields of the run, flat, as its checkpoints keep them."""
        data = name_dataset(self.data_args, self.train_dataset.name)
        fields = flat_fields(self.model.config, data, self.views.args, self.args)
        per_process = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return fields | {IMAGES: per_process * self.args.world_size}

    def current_state(self) -> RunState:
        """The state of the run for a checkpoint; call it on all processes."""
        past = self.run_state
        return replace(
            past,
            settings=self.settings(),
            step=self.state.global_step,
            seconds=self.clock.seconds,
            energy=energy_so_far(self) or past.energy,
            images_seen=past.images_seen + self.step_log.images_seen,
        )

    def open_checkpoint(self, wanted: str | bool | None) -> str | None:
        """The checked checkpoint to resume from, see `find_checkpoint`; its state becomes `run_state`.

        Raises ValueError if it is not whole, or if a setting differs that must not change.
        """
        self.run_state = RunState()
        checkpoint = find_checkpoint(self.args.folder, wanted, self.is_world_process_zero())
        if checkpoint is None:
            self.is_finished = False
            return None
        self.run_state = RunState.read(checkpoint)
        self.run_state.resume_with(self.settings(), checkpoint)
        check_weights(checkpoint, self.model)
        batch = (read_trainer_state(checkpoint) or {}).get("train_batch_size")
        if self.args.auto_find_batch_size and batch:
            self._train_batch_size = batch  # transformers restores it too, but later
        step, planned = self.run_state.step, self.planned_steps()
        if step > planned:
            raise ValueError(
                f"{checkpoint} is at step {step}, beyond the {planned} steps of num_train_epochs and max_steps; set "
                f"more of them, or start over in another --output_dir"
            )
        self.is_finished = step == planned
        return str(checkpoint)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.online_probe is not None and self.args.should_save:
            write_state(Path(output_dir) / PROBE, dict(self.online_probe.state_dict()))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.online_probe is not None and checkpoint is not None:
            self._load_probe(self.online_probe, Path(checkpoint) / PROBE)

    def _load_probe(self, probe: OnlineProbe, path: Path) -> None:
        """Continues the probe of a checkpoint; if it has none, the probe starts from scratch, with a warning."""
        old = path.with_suffix(".pt")
        if not (path.exists() or old.exists()):
            logger.warning("%s is missing: the online probe starts from scratch", path)
            return
        with explained(path if path.exists() else old):
            probe.load_state_dict(read_state(path) if path.exists() else torch.load(old, "cpu", weights_only=True))

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        state = state_dict if state_dict is not None else self.model.state_dict()
        super()._save(output_dir, storable(state))


def is_finite(model: nn.Module) -> bool:
    """Whether all weights and buffers are finite, in all processes; call it on all of them."""
    values = (local_tensor(value) for value in model.state_dict().values())
    finite = torch.stack([torch.isfinite(value).all() for value in values if value.is_floating_point()]).all()
    return mean_over_processes(finite.float()).item() == 1
