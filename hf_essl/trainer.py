"""`SSLTrainer`: a transformers.Trainer that makes views on the device, chooses the hard pair and trains on it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_essl.acceleration import (
    compile_backbones,
    keep_freed_memory,
    prepare_layers,
    share_buffers,
    warm_up_backbones,
    whole_parameters,
)
from hf_essl.alarms import AlarmCallback
from hf_essl.arguments import DataArguments, SSLTrainingArguments, ViewArguments
from hf_essl.callbacks import (
    ClockCallback,
    EvaluateEveryCallback,
    MethodCallback,
    ProgressBarCallback,
    StopOnSignalCallback,
)
from hf_essl.checkpoints import checkpoints, last_complete_checkpoint
from hf_essl.clock import Clock
from hf_essl.cost import FlopCounter
from hf_essl.data import ImageDataset, StreamedImages, UnreadableLog, as_images, image_count
from hf_essl.data.feed import dismiss_workers, feed_of, leave_on_host, set_up_loading
from hf_essl.energy import EnergyCallback
from hf_essl.errors import Diverged
from hf_essl.evaluation import extract_features, feature_std, knn_accuracy, rankme
from hf_essl.evaluation.online_probe import OnlineProbe, captured_features
from hf_essl.hub.card_callback import write_trainer_report
from hf_essl.hub.trainer import HubTrainer
from hf_essl.means import RunningMeans
from hf_essl.methods.base import SSLModel
from hf_essl.methods.gather import mean_over_processes
from hf_essl.schedules import (
    BatchGrowth,
    CurveScheduler,
    SuperProgressiveCallback,
    curve_from_args,
    resolution_schedule,
)
from hf_essl.selection import HardAugment, Selection, selection_scalars
from hf_essl.tracking import attach_trackers
from hf_essl.views import ViewParams, Views

logger = logging.getLogger(__name__)

PROBE = "online_probe.pt"


@dataclass
class StepRecord:
    """What the step under way has shown, for `log()`; tensors stay on the device until then."""

    step: int = -1
    momentum: float | None = None
    images: Tensor | None = None  # uint8 N x 3 x S x S
    embedding: Tensor | None = None
    labels: Tensor | None = None


class SSLTrainer(HubTrainer):
    """Trains an `SSLModel` on unlabelled images with F1-CLR, Super Progressive Learning and Hard Augment.

    Args:
        model: a backbone with a method, from `SSLModel.from_timm`.
        args: optimizer, learning-rate schedule, evaluation, and all of transformers.TrainingArguments.
        train_dataset: a datasets.Dataset with an `image` column, a folder of images or of parquet files, or a torch
            dataset of images; labels never reach the loss.
        eval_dataset: labelled images of the same kinds, for the kNN accuracy.
        bank_dataset: the neighbours of the kNN accuracy; by default the training images, where they have labels.
        view_args: the augmentation chain, the curriculum of resolution and magnitude, and Hard Augment.
        data_args: how the images are decoded and kept.
        callbacks: further transformers callbacks.
    """

    args: SSLTrainingArguments
    model: SSLModel
    train_dataset: ImageDataset
    eval_dataset: ImageDataset | None
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: SSLModel,
        args: SSLTrainingArguments | None = None,
        train_dataset=None,
        eval_dataset=None,
        *,
        bank_dataset=None,
        view_args: ViewArguments | None = None,
        data_args: DataArguments | None = None,
        callbacks=None,
    ):
        args = args or SSLTrainingArguments()
        data_args = data_args or DataArguments()
        view_args = view_args or ViewArguments()
        for group in (data_args, view_args, args):
            group.check()
        if args.data_seed is None:
            args.data_seed = args.seed  # else the order of the images follows whatever seeded torch last
        set_up_loading(args, data_args)
        if isinstance(train_dataset, (str, Path)):
            data_args = replace(data_args, dataset=str(train_dataset))
        train_dataset, eval_dataset, bank_dataset = (
            None if source is None else as_images(source, data_args, args.device)
            for source in (train_dataset, eval_dataset, bank_dataset)
        )
        self.data_args = data_args
        self.feed = feed_of(train_dataset, data_args, args.device)
        self.online_probe = OnlineProbe.beside(model, train_dataset, args.device) if args.online_probe else None
        self.views = Views(view_args, model.pixel_mean, model.pixel_std)
        self.hard_augment = HardAugment(self.views)
        if bank_dataset is None and not isinstance(train_dataset, StreamedImages):
            bank_dataset = train_dataset
        self.bank_dataset = bank_dataset
        self.flop_counter = FlopCounter.of(model, view_args)
        prepare_layers(model, args)
        self.clock = Clock()
        self._images = 0  # of all processes, since the last log
        self._seen = StepRecord()
        self._means = RunningMeans()
        self.growth: BatchGrowth | None = None
        super().__init__(
            model=model,
            args=args,
            data_collator=self.feed.collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
        )
        self.loss_is_scaled_for_ga = False
        self.unreadable = UnreadableLog(image_count(train_dataset), data_args.max_unreadable)
        self._add_callbacks()

    def _add_callbacks(self) -> None:
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self.stop_on_signal = StopOnSignalCallback(self.waits)
        self.alarm = AlarmCallback(self.model)
        self.energy = EnergyCallback(self.args.energy_country) if self.args.energy_country else None
        for callback in (
            SuperProgressiveCallback.from_args(self.views, self.views.args, self.args),
            MethodCallback(self.accelerator, self.waits),
            ProgressBarCallback(),
            EvaluateEveryCallback(self.evaluate, self.args.knn_every_epochs),
            ClockCallback(self.clock),
            self.stop_on_signal,
            self.alarm,
            self.energy,
        ):
            if callback is not None:
                self.add_callback(callback)
        attach_trackers(self)

    def _build_accelerator_args(self, **kwargs) -> dict[str, Any]:
        arguments = super()._build_accelerator_args(**kwargs)
        arguments.pop("dynamo_plugin", None)  # it compiles the whole model; `compile_backbones` the backbone alone
        return arguments

    def get_train_dataloader(self):
        """The loader of the training images; a stream shares itself out over the processes."""
        if isinstance(self.train_dataset, StreamedImages):
            return DataLoader(
                self.train_dataset.for_process(self.args.process_index, self.args.world_size),
                batch_size=self.args.train_batch_size,
                num_workers=self.args.dataloader_num_workers,
                prefetch_factor=self.args.dataloader_prefetch_factor,
                pin_memory=self.args.dataloader_pin_memory,
                collate_fn=self.data_collator,
            )
        if self.train_dataset is None:
            raise ValueError("train_dataset is missing; give SSLTrainer the images to train on")
        sampler: Any = self._get_train_sampler
        loader = self._get_dataloader(self.feed.dataset, "Training", self._train_batch_size, sampler, is_training=True)
        return leave_on_host(loader, self.args.seed)

    # ---- optimizer and schedule ----

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The optimizer of `args.optim` for the run."""
        if self.optimizer is None:
            self.optimizer = self.build_optimizer(model or self.model)
        return self.optimizer

    def build_optimizer(self, model: SSLModel) -> torch.optim.Optimizer:
        """An optimizer with weight decay on every parameter, biases and norms included, as the methods publish.

        A method's `fixed_lr_modules` form a group of their own, whose learning rate stays at the peak where
        `fix_predictor_lr` is set.
        """
        optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args)
        if optimizer_class is torch.optim.SGD:
            settings.setdefault("momentum", self.args.momentum)
            settings.setdefault("fused", not self.is_fsdp_enabled and not self.model.withholds_gradients)
        settings.setdefault("weight_decay", self.args.weight_decay)
        fixed_names = self.model.fixed_lr_modules if self.args.fix_predictor_lr else ()
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        fixed = [p for n, p in trained if n.split(".")[0] in fixed_names]
        scheduled = [p for n, p in trained if n.split(".")[0] not in fixed_names]
        groups = [{"params": scheduled}] + ([{"params": fixed, "fixed_lr": True}] if fixed else [])
        return optimizer_class(groups, **settings)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """The curve of `args.lr_schedule` over the whole run: learning rate and momentum have this one writer."""
        if self.args.batch_growth > 1:
            self.growth = BatchGrowth.from_args(
                self.args, self.views.args, num_training_steps, image_count(self.get_train_dataloader())
            )
        if self.lr_scheduler is None:
            self.lr_scheduler = CurveScheduler(
                optimizer or self.optimizer,
                curve_from_args(self.args, num_training_steps),
                (self.args.min_momentum, self.args.max_momentum),
                self.growth.sizes if self.growth else None,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # ---- a training step ----

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Makes the two views of the batch on the device and trains on them; labels reach the online probe alone.

        Views are made here, in float32, outside autocast, DDP and compile.
        """
        arrived = self.feed(inputs)
        self.unreadable.update(arrived["unreadable"], seen=len(arrived["image"]))
        self._images += len(arrived["image"]) * self.args.world_size
        step = self.state.global_step
        batch = arrived if self.growth is None else self.growth.gather(step, arrived)
        if batch is None:
            return torch.zeros((), device=self.args.device)
        images = batch["image"]  # uint8 N x 3 x S x S
        model.train()
        views = self.make_views(images)
        self._seen.images = images
        self._seen.labels = batch.get("label")
        loss = super().training_step(model, views, num_items_in_batch)
        return loss if self.growth is None else loss * self.growth.sizes[step]  # the log takes the mean over steps

    def waits(self, step: int) -> bool:
        """Whether a step only puts its batch by, for a later one to train on (`batch_growth`)."""
        return self.growth is not None and self.growth.waits(step)

    def make_views(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 N x 3 x S x S to what the model's forward takes: two float32 views that train, N x 3 x r x r each."""
        self._seed_views()
        candidates = self.views.sample_all(images, self.hard_augment.kinds)
        compared = self.views.args.has_selection_pass
        chosen = self.choose(candidates, self.hard_augment.small_views(images, candidates) if compared else ())
        self._means.add(selection_scalars(chosen))
        return self.render(images, chosen)

    def choose(self, candidates: list[ViewParams], small: Iterable[Tensor]) -> Selection:
        """The two of the candidates that train, by their small views; the student compares them unwrapped."""
        with self.accelerator.autocast(), whole_parameters(self.model):
            return self.hard_augment.choose(self.accelerator.unwrap_model(self.model), candidates, small)

    def render(self, images: Tensor, chosen: Selection) -> dict[str, Tensor]:
        """What the model's forward takes, at the current resolution."""
        first, second = self.views.render_all(images, [chosen.first, chosen.second])
        views = {"first": first, "second": second}
        return views if chosen.extra is None else {**views, "extra": chosen.extra}

    def _seed_views(self) -> None:
        """Each rank and optimizer step has its own stream, so a resumed run sees the views it would have seen."""
        step = self.state.global_step
        if self._seen.step != step:
            self.views.seed(self.args.seed, self.args.process_index, step)
            self._seen = StepRecord(step, momentum_of(self.optimizer))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean loss of the images, from one forward pass of both views."""
        if self.online_probe is None:
            outputs = model(**inputs)
        else:
            with captured_features(self.model.projector) as features:
                outputs = model(**inputs)
            assert self._seen.labels is not None, "`OnlineProbe.beside` has checked"
            probe_loss, probe_accuracy = self.online_probe.update(features[0], self._seen.labels)
            self._means.add({"probe_loss": probe_loss, "probe_train_accuracy": probe_accuracy})
        self._means.add({f"loss_{name}": value for name, value in outputs.get("parts", {}).items()})
        self._seen.embedding = outputs["embedding"]
        loss = outputs["loss"].mean()
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs) -> float:  # type: ignore[override]
        """FLOPs of this process's step: forward and backward of two views and the selection, counted by torch."""
        return len(inputs["image"]) * self.flop_counter.step(self.views.resolution).total

    # ---- the run ----

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """Trains; `resume_from_checkpoint=True` goes on from the last complete checkpoint of the output folder.

        Raises:
            ValueError: where there is nothing to resume from, no whole batch to train on, or too few images for the
                method.
            Diverged: where the loss is no number or the embedding has collapsed, and `on_divergence` is stop.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.folder)
        self._check_batch()
        self._seen, self._means = StepRecord(), RunningMeans()
        self._compile()
        if self.args.device.type == "cpu":
            keep_freed_memory()
        # an evaluation before this would have marked the model as prepared, and DDP would silently be skipped
        self.model.__dict__.pop("_is_accelerate_prepared", None)
        result = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.callback_handler.train_dataloader is not None:
            dismiss_workers(self.callback_handler.train_dataloader)
        if self.alarm.lost:
            saved = checkpoints(self.args.folder)
            raise Diverged(f"{self.alarm.lost}; last checkpoint: {saved[0] if saved else 'none was saved yet'}")
        return result

    def _compile(self) -> None:
        """Compiles the backbones where `torch_compile` says so, for all resolutions, before the clock runs."""
        if not self.args.torch_compile:
            return
        compile_backbones(self.model, self.args)
        views = self.views.args
        resolutions = resolution_schedule(views, self.args.warmup_fraction).shares()
        with self.accelerator.autocast():
            warm_up_backbones(
                self.model,
                self.args.per_device_train_batch_size,
                resolutions,
                views.selection_resolution if views.has_selection_pass else None,
            )

    def step_images(self) -> Tensor | None:
        """The last batch, uint8 N x 3 x S x S on the device, before augmentation; None before the first step."""
        return self._seen.images

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        batches = len(self.get_train_dataloader())
        return math.ceil(
            self.args.num_train_epochs * max(math.ceil(batches / self.args.gradient_accumulation_steps), 1)
        )

    def _check_batch(self) -> None:
        images, batch = image_count(self.train_dataset), self.args.train_batch_size * self.args.world_size
        if self.args.dataloader_drop_last and images is not None and images < batch:
            raise ValueError(
                f"{images} training images make no batch of {batch}; lower per_device_train_batch_size, or set "
                f"dataloader_drop_last: false"
            )
        if images is not None:
            self.model.check_data(images, batch)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """kNN accuracy (percent), feature standard deviation and RankMe of the backbone's features.

        Without labels, or without evaluation images, the features are those of the training images and there is no
        accuracy; a stream without labels is not evaluated.
        """
        with self.clock.paused():
            metrics = {f"{metric_key_prefix}_{k}": v for k, v in self._evaluate_features(eval_dataset).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate_features(self, eval_dataset) -> dict[str, float]:
        if eval_dataset is not None:
            queries_from = as_images(eval_dataset, self.data_args, self.args.device)
        else:
            queries_from = self.eval_dataset if self.eval_dataset is not None else self.bank_dataset
        if queries_from is None:
            return {}
        share_buffers(self.model)
        queries, query_labels = self.features(queries_from)
        metrics = {"feature_std": feature_std(queries).item(), "rankme": rankme(queries)}
        if self.online_probe is not None and query_labels is not None:
            metrics["probe_accuracy"] = self.online_probe.accuracy(queries, query_labels)
        if queries_from is not self.bank_dataset and query_labels is not None and self.bank_dataset is not None:
            bank, bank_labels = self.features(self.bank_dataset)
            if bank_labels is not None:
                metrics["knn_accuracy"] = knn_accuracy(
                    bank,
                    bank_labels,
                    queries,
                    query_labels,
                    self.args.knn_k,
                    self.args.knn_temperature,
                    device=self.args.device,
                    accelerator=self.accelerator,
                )
        return metrics

    def features(self, dataset) -> tuple[Tensor, Tensor | None]:
        """Features N x D of the backbone at the full resolution, without augmentation, and labels N."""
        with whole_parameters(self.model):
            return extract_features(
                self.model.backbone,
                dataset,
                resolution=self.views.args.resolution,
                mean=self.model.pixel_mean,
                std=self.model.pixel_std,
                batch_size=self.args.per_device_eval_batch_size,
                num_workers=self.args.dataloader_num_workers,
                accelerator=self.accelerator,
            )

    # ---- what is logged and saved ----

    def create_model_card(self) -> None:  # type: ignore[override]
        """Writes the report of the finished run, its backbone and its card; call it on all processes."""
        write_trainer_report(self)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds parts of the loss, schedules, selection, feature std, images/s and petaFLOPs to a training step's log.

        Here and not in a callback, since W&B's callback runs before a user's.
        """
        if "loss" in logs:
            logs.update(self._step_metrics())
        super().log(logs, start_time)

    def _step_metrics(self) -> dict[str, float]:
        images, self._images = self._images, 0
        elapsed = self.clock.lap()
        std, width = self._embedding_std()
        metrics: dict[str, float | None] = {
            "momentum": self._seen.momentum,
            "resolution": self.views.resolution,
            "magnitude": self.views.magnitude,
            "feature_std": std,
            "feature_spread": std and std * math.sqrt(width),  # 1 on the whole sphere, 0 in one point
            "images_per_second": images / elapsed,
            "batch_size": None if self.growth is None or self._seen.images is None else len(self._seen.images),
            "petaflops": self.state.total_flos / 1e15,
            "train_seconds": self.clock.seconds,
        }
        metrics |= self._means.read()
        if "selection_gap" in metrics:
            flops = self.flop_counter.step(self.views.resolution)
            metrics["selection_cost_percent"] = 100 * flops.selection / flops.total
        return {key: value for key, value in (metrics | self.energy_so_far()).items() if value is not None}

    def energy_so_far(self) -> dict[str, float]:
        """kWh and kgCO2e of all machines, where `energy_country` is set; call it on all processes."""
        if self.energy is None:
            return {}
        mean = mean_over_processes(torch.tensor(self.energy.read(), device=self.args.device))
        kwh, kg = (mean * self.args.world_size).tolist()
        return {"energy_kwh": kwh, "co2e_kg": kg}

    def _embedding_std(self) -> tuple[float | None, int]:
        """Std of the last batch's embedding, the mean over the processes, and its width D."""
        embedding = self._seen.embedding
        if embedding is None:
            return None, 0
        return mean_over_processes(feature_std(embedding)).item(), embedding.shape[1]

    def _save_checkpoint(self, model, trial) -> None:
        if not self._is_finite():
            logger.warning("step %d: no checkpoint is saved, since weights are not finite", self.state.global_step)
            return  # the last good checkpoint stays the last
        with self.clock.paused():
            super()._save_checkpoint(model, trial)

    def _is_lost(self) -> bool:
        return self.alarm.lost is not None

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.online_probe is not None and self.args.should_save:
            torch.save(self.online_probe.state_dict(), Path(output_dir) / PROBE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.online_probe is not None and checkpoint is not None:
            self.online_probe.resume(Path(checkpoint) / PROBE)

    def _is_finite(self) -> bool:
        """Whether the model's state holds numbers alone, in all processes."""
        own = (getattr(value, "_local_tensor", value) for value in self.model.state_dict().values())  # FSDP's shard
        finite = torch.stack([torch.isfinite(value).all() for value in own if value.is_floating_point()]).all()
        return mean_over_processes(finite.float()).item() == 1

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        state = state_dict if state_dict is not None else self.model.state_dict()
        super()._save(output_dir, {key: value.contiguous() for key, value in state.items()})  # safetensors wants it


def momentum_of(optimizer) -> float | None:
    """Momentum of the first group: SGD's, or the first beta of the Adam family."""
    group = optimizer.param_groups[0]
    return group["momentum"] if "momentum" in group else group.get("betas", (None,))[0]
