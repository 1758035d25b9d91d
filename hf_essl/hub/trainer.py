"""What a trainer reports and uploads: the backbone as safetensors with its card, not the whole output folder."""

import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import HubStrategy

from hf_essl.common import write_text
from hf_essl.config.redact import check_public
from hf_essl.cost import Cost
from hf_essl.data import ImageDataset, image_count, sample_images
from hf_essl.evaluation.during_training import query_indices
from hf_essl.evaluation.nearest import NeighborLog, find_neighbors
from hf_essl.hub.card import write_card
from hf_essl.hub.export import export_backbone
from hf_essl.hub.hub_errors import HubUnreachable
from hf_essl.hub.push import (
    END_OF_TRAINING,
    Files,
    backbone_files,
    commit,
    open_repository,
    push_backbone,
    repository_name,
    ssl_files,
)
from hf_essl.methods import method_name
from hf_essl.methods.tokens import patch_count
from hf_essl.recipe import Recipe
from hf_essl.reporting.metrics import Metrics, RunFacts, collect_metrics
from hf_essl.reporting.neighbors import draw_before_and_after
from hf_essl.reporting.report import write_report
from hf_essl.run_folder import RECIPE
from hf_essl.schedules import Curriculum
from hf_essl.selection import shown_pairs
from hf_essl.training.base_trainer import BaseTrainer
from hf_essl.training.layout import unsharded
from hf_essl.training.optimizer import averaged_weights
from hf_essl.training.trackers import energy_so_far
from hf_essl.views import Views

logger = logging.getLogger(__name__)


class HubTrainer(BaseTrainer):
    """A transformers.Trainer that pushes the backbone, or all weights of its method, as safetensors.

    transformers' own uploads contain `training_args.bin`, a pickle, and the whole output folder.
    """

    views: Views
    curriculum: Curriculum
    bank_dataset: Any
    data_args: Any
    neighbor_log: NeighborLog
    features: Any
    unreadable: Any
    callback_handler: Any
    hub_model_id: str | None  # type: ignore[assignment]
    _upload: Future | None = None

    # ---- overrides of transformers ----

    def init_hf_repo(self) -> None:  # type: ignore[override]  # without a token
        """Opens the repository before training; Trainer's constructor calls this if `push_to_hub` is set.

        Raises HubError for a wrong token or a forbidden name; if the Hub cannot be reached, it only warns.
        """
        if not self.is_world_process_zero():
            return
        private, revision = self.args.hub_private_repo, self.args.hub_revision
        try:
            self.hub_model_id = open_repository(repository_name(self.args), private, revision).repo_id
        except HubUnreachable as error:
            logger.warning("%s; training continues, and each push tries again", error)

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = END_OF_TRAINING,
        *,
        revision: str | None = None,
        private: bool | None = None,
        full_state: bool | None = None,
    ) -> str | None:
        """Exports the current backbone to `<output_dir>/backbone` and pushes it; call it on all processes.

        Args:
            revision, private: by default `hub_revision` and `hub_private_repo`.
            full_state: also push the last complete checkpoint's weights; by default if `hub_strategy` is checkpoint.

        Returns the URL of the repository, on the main process. Raises ValueError and HubError as `push_backbone`.
        """
        self._finish_current_push()
        with unsharded(self.model):
            if self.is_world_process_zero():
                self.export_backbone(self.args.folder / "backbone")
        self.create_model_card()
        if not self.is_world_process_zero():
            return None
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        return push_backbone(
            self.args.folder,
            repository_name(self.args),
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message,
            full_state=self._pushes_state if full_state is None else full_state,
        )

    def create_model_card(self) -> None:  # type: ignore[override]
        """Writes the report, the backbone and the card of the finished run; call it on all processes.

        A run that has not ended, or whose recipe is not known, gets a warning instead.
        """
        state = self.state
        if not state.max_steps or state.global_step < state.max_steps:
            logger.warning("no card is written: the run has not ended (step %d)", state.global_step)
            return
        try:
            config, name = self.model.config, self.train_dataset.name
            recipe = Recipe.of(config, self.data_args, self.views.args, self.args, name)
            recipe.changes = tuple(self.run_state.changes)
        except ValueError as error:
            logger.warning("no card is written: %s", error)
            return
        if self.is_world_process_zero():
            write_text(self.args.folder / RECIPE, recipe.to_yaml())
        self.report(recipe)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes the current backbone in the background, without a card, which describes finished runs only.

        If an upload is still running, it skips this one, or waits if `hub_always_push` is set.
        """
        if self.args.hub_strategy == HubStrategy.END or self.was_stopped:
            return
        with unsharded(self.model):  # on all processes, although only one pushes
            if not self.is_world_process_zero():
                return
            if self.args.hub_always_push:
                self._finish_current_push()
            if self._upload is not None and not self._upload.done():
                return
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            scratch = TemporaryDirectory(dir=self.args.output_dir, prefix=".push-")
            files = backbone_files(self.export_backbone(Path(scratch.name) / "backbone"))
            if self._pushes_state:
                files |= ssl_files(Path(checkpoint_folder))
            self._push_in_background(files, scratch, f"Training in progress, step {self.state.global_step}")

    def _finish_current_push(self) -> None:
        if self._upload is not None:
            self._upload.exception()  # waits; `_warn_if_failed` reports the error

    def _push_in_background(self, files: Files, scratch: TemporaryDirectory, message: str) -> None:
        target = repository_name(self.args), self.args.hub_private_repo, self.args.hub_revision

        def push() -> None:
            with scratch:
                check_public(files, self.args.folder)
                commit(files, *target, message)

        uploads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self._upload = uploads.submit(push)
        self._upload.add_done_callback(_warn_if_failed)
        uploads.shutdown(wait=False)

    # ---- the report ----

    def report(self, recipe: Recipe, plain_step_seconds: float | None = None) -> tuple[Metrics, list[Path]]:
        """Writes metrics.json, pictures, the backbone and its card; call it on all processes.

        Returns the content of `metrics.json` and, on the main process, the written files.

        Args:
            plain_step_seconds: measured seconds per step of the plain recipe, for the measured speed-up.
        """
        metrics = collect_metrics(self._facts(recipe, plain_step_seconds))
        if self.is_finished and self.neighbor_log.last is None:  # the report was interrupted
            self._find_neighbors()
        with unsharded(self.model):  # on all processes, although only one writes
            pairs = {"start": self.run_state.pairs_at_start, "end": self.shown_pairs(1.0)}
            if not self.is_world_process_zero():
                return metrics, []
            patches = partial(patch_count, self.model.backbone)
            facts = recipe, metrics, self.train_dataset, self.curriculum, pairs, patches
            written = write_report(self.args.folder, *facts)
            if pictures := self._draw_neighbors():
                written.append(pictures)
            written.append(self.export_backbone(self.args.folder / "backbone"))
        write_card(written[-1], metrics, recipe)
        # last: a run that has this file is finished, and so are its other files
        results = write_text(self.args.folder / "metrics.json", json.dumps(metrics, indent=2))
        return metrics, [results, *written]

    def figures(self) -> dict[str, Any]:
        """The single values of the report so far, by name: what a tracker shows beside a run; call it everywhere."""
        recipe = Recipe.of(self.model.config, self.data_args, self.views.args, self.args, self.train_dataset.name)
        found = collect_metrics(self._facts(recipe))
        return {key: value for key, value in found.items() if isinstance(value, (int, float, str))}

    def _facts(self, recipe: Recipe, plain_step_seconds: float | None = None) -> RunFacts:
        return RunFacts(
            recipe=recipe,
            cost=self.predicted_cost(),
            state=self.state,
            seconds=self.clock.seconds,
            plain_step_seconds=plain_step_seconds,
            parameters=sum(p.numel() for p in self.model.backbone.parameters()),
            dataset=self.train_dataset.name,
            train_images=image_count(self.train_dataset),
            bank_images=image_count(self.bank_dataset),
            eval_images=image_count(self.eval_dataset),
            unreadable_images=len(self.unreadable.found) + self.train_dataset.left_out,
            energy=energy_so_far(self) or self.run_state.energy,
            images_seen=self.run_state.images_seen + self.step_log.images_seen,
            device=self.args.device,
            processes=self.args.world_size,
            once_seconds=self.image_targets.seconds,
        )

    @property
    def evaluation_images(self) -> ImageDataset | None:
        """The images of the evaluations: those to evaluate on, else the training images; None for a plain stream."""
        images: Any = self.eval_dataset
        return self.bank_dataset if images is None else images

    def shown_pairs(self, progress: float) -> list[tuple[int, int]] | None:
        """The views of views.png that the network as it is would train on; None without Hard Augment.

        Call it on all processes: BatchNorm and losses may exchange values.
        """
        args, images = self.views.args, self.train_dataset
        if args.selection != "hard" or (image_count(images) or 0) < 2:  # a stream would have to start twice
            return None
        shown, aspect = sample_images(images)
        with self.accelerator.autocast():
            student = self.accelerator.unwrap_model(self.model)
            shown = shown.to(next(student.parameters()).device)  # FSDP moves the model when the training begins
            with student.show_images(self.image_targets.look(student, shown, aspect)):
                return shown_pairs(student, shown, aspect, args, self.curriculum.magnitude(progress))

    def _find_neighbors(self) -> None:
        """The neighbors of the last evaluation again; call it on all processes."""
        images, kept = self.evaluation_images, []  # type: ignore[var-annotated]
        if images is not None:
            with averaged_weights(self.optimizer):
                features, _ = self.features(images, indices=query_indices(images, self.bank_dataset), kept=kept)
            self.neighbor_log.record(find_neighbors(features, kept), self.state.global_step, writes=False)

    def _draw_neighbors(self) -> Path | None:
        """neighbors.png, or None with a warning if there are too few images to compare."""
        before, after = self.neighbor_log.start(), self.neighbor_log.last
        if self.evaluation_images is None:
            return None  # a stream: `evaluate` has said that nothing is measured
        if after is None:
            logger.warning("neighbors.png is not drawn: fewer than two images to compare")
            return None
        return draw_before_and_after(self.evaluation_images, before, after, self.args.folder / "neighbors.png")

    def export_backbone(self, folder: str | Path) -> Path:
        """Exports the current backbone, tagged with method and dataset; see `hf_essl.export_backbone`.

        Under FSDP, call it inside `unsharded`.
        """
        tag = f"{method_name(self.model)}_{self.train_dataset.name.rsplit('/', 1)[-1]}"
        size, crop_pct = self.views.args.resolution, self.args.eval_crop_pct
        return export_backbone(self.model, folder, input_size=size, crop_pct=crop_pct, tag=tag)

    def predicted_cost(self) -> Cost:
        """The predicted cost of the whole run."""
        raise TypeError(f"{type(self).__name__} must define predicted_cost()")

    @property
    def was_stopped(self) -> bool:
        """Whether the run ended early; its weights are then not pushed."""
        return False

    @property
    def _pushes_state(self) -> bool:
        return self.args.hub_strategy == HubStrategy.CHECKPOINT


class CardCallback(TrainerCallback):
    """Writes the report of a run, its backbone and its card at the end of training, unless the run was cut short.

    trainer.add_callback(CardCallback(trainer))
    """

    def __init__(self, trainer: HubTrainer):
        self.trainer = trainer

    def on_train_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            self.trainer.create_model_card()


def _warn_if_failed(upload: Future) -> None:
    error = upload.exception()
    if error is not None:
        logger.warning("a checkpoint was not pushed, training continues: %s", error)
