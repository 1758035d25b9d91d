"""`SSLTrainer`: a transformers.Trainer that makes views on the device, chooses the hard pair and trains on it."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import PredictionOutput

from hf_essl.common import Diverged
from hf_essl.compat import default_progress_bar, forget_preparation, shutdown_workers
from hf_essl.config import DataArguments, SSLTrainingArguments, ViewArguments
from hf_essl.config.inherited import ignored_lines
from hf_essl.cost import Cost, FlopCounter, estimate_cost
from hf_essl.data import Feed, ImageDataset, StreamedImages, UnreadableLog, as_images, image_count
from hf_essl.data.inventory import notice
from hf_essl.evaluation import extract_features
from hf_essl.evaluation.during_training import OnlineProbe, captured_features, evaluate_features
from hf_essl.evaluation.image_targets import ImageTargets, check_image_teacher
from hf_essl.evaluation.nearest import NeighborLog
from hf_essl.evaluation.retrieval import FixedViews
from hf_essl.methods import SSLModel
from hf_essl.methods.distributed import broadcast_buffers
from hf_essl.recipe import check_groups
from hf_essl.run_folder import checkpoints
from hf_essl.run_lock import run_lock
from hf_essl.schedules import Size, SuperProgressiveCallback
from hf_essl.selection import HardAugment, Selection, seen_tokens
from hf_essl.storage import check_space
from hf_essl.training.alarms import AlarmCallback
from hf_essl.training.base_trainer import is_finite
from hf_essl.training.callbacks import ClockCallback, EvaluateEveryCallback, LogOftenCallback, StopOnSignalCallback
from hf_essl.training.check_arguments import check_arguments
from hf_essl.training.check_images import accumulation_lines, check_images, idle_lines
from hf_essl.training.checkpoints import checkpoint_bytes, set_aside
from hf_essl.training.clock import Clock
from hf_essl.training.layout import (
    check_network,
    compile_backbones,
    disable_malloc_trim,
    prepare_layers,
    set_up_loading,
    unsharded,
    warm_up_backbones,
)
from hf_essl.training.optimizer import averaged_weights, momentum_of
from hf_essl.training.progress import ProgressBarCallback
from hf_essl.training.run_state import RunState
from hf_essl.training.sanity import SanityCallback
from hf_essl.training.step import MethodCallback
from hf_essl.training.step_log import StepLog
from hf_essl.training.trackers import attach_trackers, energy_so_far
from hf_essl.trial_trainer import TrialTrainer, init_model
from hf_essl.views import Views

logger = logging.getLogger(__name__)


class SSLTrainer(TrialTrainer):
    """Trains an `SSLModel` on unlabeled images with F1-CLR, Super Progressive Learning and Hard Augment.

    Args:
        model: a backbone with a method, from `SSLModel.from_timm`.
        args: optimizer, learning-rate schedule, evaluation, and everything in transformers.TrainingArguments.
        train_dataset: a datasets.Dataset with an `image` column, a folder of images or of parquet files, or a torch
            dataset of images; labels never reach the loss.
        eval_dataset: labeled images of the same kinds, for the kNN accuracy.
        bank_dataset: the neighbors of the kNN accuracy; by default the training images, if they have labels.
        model_init: instead of a model, a function that builds one; `hyperparameter_search` calls it for each trial.
        view_args: the augmentation chain, the curriculum of resolution, magnitude and tokens, and Hard Augment.
        data_args: how the images are decoded and kept.
        callbacks: further transformers callbacks.
        optimizers: (an optimizer of the model's parameters, None), instead of `args.optim`; the curve of
            `args.lr_schedule` drives it.
        others: transformers.Trainer's other arguments, which are refused with the reason.

    Raises:
        ValueError: in one line, for arguments that cannot work.
    """

    train_dataset: ImageDataset
    eval_dataset: ImageDataset | None

    def __init__(
        self,
        model: SSLModel | None = None,
        args: SSLTrainingArguments | None = None,
        train_dataset=None,
        eval_dataset=None,
        *,
        bank_dataset=None,
        model_init: Callable[..., SSLModel] | None = None,
        view_args: ViewArguments | None = None,
        data_args: DataArguments | None = None,
        callbacks=None,
        optimizers=(None, None),
        **others,
    ):
        args, view_args = args or SSLTrainingArguments(), view_args or ViewArguments()
        self.data_args = data_args or DataArguments()
        check_arguments(args, optimizers, others)
        model = init_model(model, model_init)
        self.curriculum = check_groups(model.config, self.data_args, view_args, args)
        check_network(model, view_args, args)
        set_up_loading(args, self.data_args)
        train_dataset, eval_dataset = self._open_images(args, train_dataset, eval_dataset, bank_dataset)
        check_image_teacher(model, train_dataset, view_args)
        self._set_up(model, args, view_args, train_dataset)
        super().__init__(
            model=model,
            args=args,
            data_collator=self.feed.collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.model_init = model_init
        self.loss_is_scaled_for_ga = False
        self.unreadable = UnreadableLog(image_count(train_dataset), self.data_args.max_unreadable)
        self._add_callbacks()

    def _open_images(self, args: SSLTrainingArguments, train, evaluation, bank):
        """Opens and returns the images to train on and to evaluate on; those of the bank are in `bank_dataset`."""
        if isinstance(train, (str, Path)):
            self.data_args = replace(self.data_args, dataset=str(train))
        train, evaluation, bank = (
            None if source is None else as_images(source, self.data_args, args.device)
            for source in (train, evaluation, bank)
        )
        can_be_bank = bank is None and not isinstance(train, StreamedImages)
        self.bank_dataset = train if can_be_bank else bank
        return train, evaluation

    def _set_up(self, model: SSLModel, args: SSLTrainingArguments, view_args: ViewArguments, train_dataset) -> None:
        """The parts of a step and their records, and warnings about settings without effect."""
        self.feed, self.image_targets = Feed(args.device), ImageTargets(args)
        self.online_probe = OnlineProbe.for_model(model, train_dataset, args.device) if args.online_probe else None
        self.views = Views(view_args, model.pixel_mean, model.pixel_std)
        self.hard_augment = HardAugment(self.views)
        self.flop_counter = FlopCounter.of(model, view_args)
        prepare_layers(model, args)
        self.clock = Clock()
        self.step_log, self.run_state = StepLog(self.clock), RunState()
        self.neighbor_log = NeighborLog(args.folder)
        for line in [*ignored_lines(args), *idle_lines(args), *accumulation_lines(model, args)]:
            logger.warning(line)

    def _add_callbacks(self) -> None:
        self.remove_callback(default_progress_bar())
        self.remove_callback(PrinterCallback)
        self.stop_on_signal = StopOnSignalCallback()
        self.alarm, self.sanity = AlarmCallback(self.model), SanityCallback(self)
        for callback in (
            SuperProgressiveCallback(self.views, self.curriculum),
            MethodCallback(lambda: self.accelerator),
            LogOftenCallback(),
            ProgressBarCallback(self.curriculum, self._step_flops, self.clock, self.args.knn_every_epochs),
            EvaluateEveryCallback(self.evaluate, self.args.knn_every_epochs),
            ClockCallback(self.clock, lambda: self.run_state.seconds),
            self.stop_on_signal,
            self.alarm,
            self.sanity,
        ):
            self.add_callback(callback)
        attach_trackers(self)

    # ---- a training step ----

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Makes the views of the batch on the device and trains on them; labels reach only the online probe.

        Views are made here, in float32, outside autocast, DDP and compile.
        """
        batch = self.feed(inputs)
        images = batch["image"]  # uint8 N x 3 x S x S
        self.unreadable.update(batch["unreadable"], seen=len(images))
        self.step_log.add_batch(batch, self.args.world_size)
        self._seed_views()
        model.train()
        with self.show_images(batch):
            chosen = self.choose_pair(images, batch["aspect"])
            self.step_log.means.add(chosen.scalars())
            views = self.render(images, chosen)
            if self.state.global_step == 0:
                self.sanity.look(images, views, self.state)
            return super().training_step(model, views, num_items_in_batch)

    def show_images(self, batch: dict[str, Any], model: SSLModel | None = None) -> AbstractContextManager:
        """A context for all passes of a batch; by default of the model that trains. See `SSLModel.show_images`."""
        return (model or self.accelerator.unwrap_model(self.model)).show_images(self.image_targets.of(batch))

    def choose_pair(self, images: Tensor, aspect: Tensor | None = None) -> Selection:
        """The pair of views of each image that trains; the student compares them unwrapped."""
        with self.accelerator.autocast(), unsharded(self.model):
            return self.hard_augment(self.accelerator.unwrap_model(self.model), images, aspect)

    def render(self, images: Tensor, chosen: Selection) -> dict[str, Tensor]:
        """What the model's forward takes: float32 views at the current resolution, see `Selection.render`."""
        seed = (self.args.seed * 1_000_003 + self.state.global_step) % 2**32
        return chosen.render(self.views, images) | seen_tokens(self.views, self.model, chosen, seed)

    def _seed_views(self) -> None:
        """Each process and optimizer step has its own stream, so a resumed run makes the same views."""
        step = self.state.global_step
        if self.step_log.step != step:
            self.views.seed(self.args.seed, self.args.process_index, step)
            self.step_log.step, self.step_log.momentum = step, momentum_of(self.optimizer)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean loss of the images, from one forward pass of all views."""
        if self.online_probe is None:
            outputs = model(**inputs)
        else:
            with captured_features(self.model.projector) as features:
                outputs = model(**inputs)
            assert self.step_log.labels is not None, "`OnlineProbe.for_model` has checked"
            self.step_log.means.add(self.online_probe.update(features[0], self.step_log.labels))
        self.step_log.means.add({f"loss_{name}": value for name, value in outputs["loss_components"].items()})
        self.step_log.embedding = outputs["embedding"]
        loss = outputs["loss"].mean()
        return (loss, outputs) if return_outputs else loss

    # ---- the run ----

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """Trains; `resume_from_checkpoint=True` continues from the newest whole checkpoint of the output folder.

        A run that is finished already trains nothing, and has the weights and the state of its end.

        Raises:
            ValueError: if there is nothing to resume from, a setting differs that must not change, another run is in
                the output folder, there is no full batch, or too few images for the method.
            StorageError: if a checkpoint cannot be written.
            Diverged: if the loss is not finite or the embedding has collapsed, and `on_divergence` is stop.
        """
        with run_lock(self.args.folder) if self.is_world_process_zero() else nullcontext():
            self.begin_trial(trial)
            return self._train(self.open_checkpoint(resume_from_checkpoint), trial, ignore_keys_for_eval)

    def _train(self, checkpoint: str | None, *others):
        check_images(self.model, self.args, self.train_dataset, self.eval_dataset, self.bank_dataset)
        if self.is_world_process_zero():
            need = 2 * checkpoint_bytes(self.model, self.args)
            check_space(self.args.folder, need, "two checkpoints")
            if checkpoint is not None:
                set_aside(self.args.folder, Path(checkpoint))
        self.step_log.clear()
        if checkpoint is None:
            with unsharded(self.model):
                self.run_state.pairs_at_start = self.shown_pairs(0.0)
        if self.args.torch_compile:
            compile_backbones(self.model, self.args)
            with self.accelerator.autocast():  # before the clock runs
                batch = self.args.per_device_train_batch_size
                warm_up_backbones(self.model, batch, self.curriculum, self.views.args)
        if self.args.device.type == "cpu":
            disable_malloc_trim()
        if not self.is_finished:
            self._fill_image_targets(is_new=checkpoint is None)
        forget_preparation(self.model)
        result = super().train(checkpoint, *others)
        if self.callback_handler.train_dataloader is not None:
            shutdown_workers(self.callback_handler.train_dataloader)
        if self.alarm.lost:
            saved = checkpoints(self.args.folder)
            raise Diverged(f"{self.alarm.lost}; last checkpoint: {saved[0] if saved else 'none was saved yet'}")
        self._check_finite()
        return result

    def _fill_image_targets(self, is_new: bool) -> None:
        """The run has their seconds each time, also when it resumes, and their operations once."""
        start = time.perf_counter()
        with unsharded(self.model):
            self.image_targets.fill(self.model, self.train_dataset, self.accelerator)
        if self.image_targets.table is not None:
            self.image_targets.seconds = time.perf_counter() - start
            self.run_state.seconds += self.image_targets.seconds
            images = len(self.image_targets.table) if is_new else 0
            self.image_targets.flops = images * self.flop_counter.whole_image() / self.args.world_size
        self.current_flos = self.image_targets.flops

    def _check_finite(self) -> None:
        """Raises Diverged, in all processes, if a weight of the model is not finite."""
        if not is_finite(self.model):
            raise Diverged(f"weights are not finite after step {self.state.global_step}; nothing is exported")

    def predicted_cost(self) -> Cost:
        """What the whole run costs."""
        args, batch = self.args, self._train_batch_size  # `auto_find_batch_size` may have reduced it
        images_per_step = batch * args.gradient_accumulation_steps * args.world_size
        run = self.curriculum, self.planned_steps(), images_per_step
        return estimate_cost(self.model, self.views.args, *run, self.flop_counter, image_count(self.train_dataset))

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """kNN accuracy and view retrieval (percent), feature standard deviation and RankMe of the backbone's features.

        Without labels, or without evaluation images, the features are those of the training images and there is no
        accuracy; a stream without labels is not evaluated.
        """
        queries = self.evaluation_images
        if eval_dataset is not None:
            queries = as_images(eval_dataset, self.data_args, self.args.device)
        if self.is_in_train:
            self._check_finite()
        metrics: dict[str, float] = {}
        with self.clock.paused(), averaged_weights(self.optimizer):
            if queries is not None:
                broadcast_buffers(self.model)
                bank, probe = self.bank_dataset, self.online_probe
                accelerator = self.accelerator
                found = evaluate_features(
                    self.features, queries, bank, self.args, accelerator, probe, self.fixed_views
                )
                metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.metrics.items()}
                if queries is self.evaluation_images:
                    self.neighbor_log.record(found.neighbors, self.state.global_step, self.is_world_process_zero())
            elif self.state.global_step == 0:
                notice(self.train_dataset.name, "retrieval and RankMe are not measured: a stream without labels")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def fixed_views(self, kind: int) -> FixedViews:
        """The first (0) or second (1) views of the retrieval, which are the same in all evaluations."""
        return FixedViews(self.views.args, self.model.pixel_mean, self.model.pixel_std, kind, self.accelerator)

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix: str = "test") -> PredictionOutput:
        """`predictions` are the features N x D of any number of images, `label_ids` their labels N or None."""
        with self.clock.paused(), averaged_weights(self.optimizer):
            features, labels = self.features(as_images(test_dataset, self.data_args, self.args.device))
        return PredictionOutput(features.numpy(), None if labels is None else labels.numpy(), {})

    def features(self, dataset, **options) -> tuple[Tensor, Tensor | None]:
        """Features N x D on center crops at the full resolution, and labels N; options as for `extract_features`."""
        with unsharded(self.model):
            return extract_features(
                self.model.backbone,
                dataset,
                resolution=self.views.args.resolution,
                mean=self.model.pixel_mean,
                std=self.model.pixel_std,
                crop_pct=self.args.eval_crop_pct,
                batch_size=self.args.per_device_eval_batch_size,
                num_workers=self.args.dataloader_num_workers,
                accelerator=self.accelerator,
                **options,
            )

    # ---- log, cost and state ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds loss components, schedules, selection, embedding std, images/s and petaFLOPs to a training step's log.

        This is not a callback because W&B's callback runs before a user's.
        """
        if self.is_finished and "train_runtime" in logs:
            return  # of a resume that trained nothing
        if "loss" in logs:
            steps = self.step_log.read()
            steps |= {"resolution": self.views.resolution, "magnitude": self.views.magnitude}
            if self.views.args.min_tokens < 1:
                steps["tokens"] = self.views.tokens
            if decay := self.weight_decay_over(self.state.max_steps):
                steps["weight_decay"] = decay.at(self.state.global_step - 1)
            steps["petaflops"] = self.state.total_flos / 1e15
            if (rate := steps["images_per_second"]) is not None:
                steps["tflops_per_second"] = rate * self._step_flops(self._size) / 1e12
            if "selection_gap" in steps:
                flops = self.flop_counter.step(*self._size)
                steps["selection_cost_percent"] = 100 * flops.selection / flops.total
            steps |= energy_so_far(self)
            logs.update({name: value for name, value in steps.items() if value is not None})
        super().log(logs, start_time)

    @property
    def _size(self) -> Size:
        return Size(self.views.resolution, self.views.tokens)

    def _step_flops(self, size: Size) -> float:
        return self.flop_counter.step(*size).total

    def floating_point_ops(self, inputs) -> float:  # type: ignore[override]
        """FLOPs of this process's step: forward and backward of two views and the selection, counted by torch."""
        return len(inputs["image"]) * self._step_flops(self._size)

    @property
    def was_stopped(self) -> bool:
        """Whether an alarm or a signal ended the run early."""
        return bool(self.alarm.lost or self.stop_on_signal.received)
