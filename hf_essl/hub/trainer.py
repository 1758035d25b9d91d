"""What a Trainer uploads: a backbone and never a pickle, in place of all that transformers uploads."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers.trainer_utils import HubStrategy

from hf_essl.common import write_text
from hf_essl.config.redact import check_public
from hf_essl.cost import Cost
from hf_essl.data import image_count
from hf_essl.hub.card import write_card
from hf_essl.hub.export import export_backbone
from hf_essl.hub.hub_errors import HubUnreachable
from hf_essl.hub.push import backbone_files, commit, open_repository, push_backbone, repository_name, ssl_files
from hf_essl.methods import method_name
from hf_essl.recipe import Recipe
from hf_essl.reporting.metrics import Metrics, RunFacts, collect_metrics
from hf_essl.reporting.report import write_report
from hf_essl.schedules import Curriculum
from hf_essl.training.base_trainer import BaseTrainer
from hf_essl.training.layout import unsharded
from hf_essl.training.trackers import energy_so_far
from hf_essl.views import Views

logger = logging.getLogger(__name__)


class HubTrainer(BaseTrainer):
    """A transformers.Trainer that pushes the backbone alone, or with the weights of its method, as safetensors.

    transformers' own uploads hold `training_args.bin`, a pickle, and the whole output folder.
    """

    views: Views
    curriculum: Curriculum
    bank_dataset: Any
    data_args: Any
    unreadable: Any
    callback_handler: Any
    hub_model_id: str | None  # type: ignore[assignment]
    _upload: Future | None = None

    def init_hf_repo(self, private: bool | None = None) -> None:  # type: ignore[override]  # no token is passed on
        """Opens the repository before training: Trainer calls this when it is made, where `push_to_hub` is set.

        Raises HubError for a wrong token or a forbidden name; a Hub in trouble is a warning, and training goes on.
        """
        if not self.is_world_process_zero():
            return
        private = self.args.hub_private_repo if private is None else private
        try:
            self.hub_model_id = open_repository(self._repository, private, self.args.hub_revision).repo_id
        except HubUnreachable as error:
            logger.warning("%s; training goes on, and each push tries anew", error)

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        *,
        revision: str | None = None,
        private: bool | None = None,
        full_state: bool | None = None,
    ) -> str | None:
        """Exports the backbone as it stands to `<output_dir>/backbone` and pushes it; call it on all processes.

        Args:
            revision, private: by default `hub_revision` and `hub_private_repo`.
            full_state: push the last complete checkpoint's weights too; by default with `hub_strategy` checkpoint.

        Returns:
            The URL of the repository, on the main process.

        Raises ValueError and HubError as `push_backbone` does.
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
            self._repository,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            commit_message=commit_message,
            full_state=self._pushes_state if full_state is None else full_state,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes the backbone as it stands, in the background; one at a time, unless `hub_always_push`.

        The card is left out, since it tells of a finished run.
        """
        if self.args.hub_strategy == HubStrategy.END or self.was_stopped:
            return
        with unsharded(self.model):  # on all processes, though one pushes
            if self.is_world_process_zero() and self._may_push():
                self.callback_handler.on_push_begin(self.args, self.state, self.control)
                scratch = TemporaryDirectory(dir=self.args.output_dir, prefix=".push-")
                files = backbone_files(self.export_backbone(Path(scratch.name) / "backbone"))
                if self._pushes_state:
                    files |= ssl_files(Path(checkpoint_folder))
                self._push_in_background(files, scratch, f"Training in progress, step {self.state.global_step}")

    def _push_in_background(self, files: dict, scratch: TemporaryDirectory, message: str) -> None:
        settings = self._repository, self.args.hub_private_repo, self.args.hub_revision

        def push() -> None:
            with scratch:
                check_public(files, self.args.folder)
                commit(files, *settings, message)

        uploads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="push")
        self._upload = uploads.submit(push)
        self._upload.add_done_callback(_warn_if_failed)
        uploads.shutdown(wait=False)

    def _may_push(self) -> bool:
        if self.args.hub_always_push:
            self._finish_current_push()
        return self._upload is None or self._upload.done()

    def _finish_current_push(self) -> None:
        if self._upload is not None:
            self._upload.exception()  # waits; `_warn_if_failed` has told it

    def export_backbone(self, folder: str | Path) -> Path:
        """Exports the backbone as it stands, tagged with method and data set; see `hf_essl.export_backbone`.

        Under FSDP inside `unsharded`.
        """
        tag = f"{method_name(self.model)}_{self.train_dataset.name.rsplit('/', 1)[-1]}"
        return export_backbone(self.model, folder, input_size=self.views.args.resolution, tag=tag)

    def create_model_card(self) -> None:  # type: ignore[override]
        """Writes the report of the finished run, its backbone and its card; call it on all processes.

        A run whose recipe is not known, or that has not ended, gets none, with a warning.
        """
        state = self.state
        if not state.max_steps or state.global_step < state.max_steps:
            logger.warning("no card is written: the run has not ended (step %d)", state.global_step)
            return
        config, views = self.model.config, self.views.args
        try:
            recipe = Recipe.of(config, self.data_args, views, self.args, self.train_dataset.name)
        except ValueError as error:
            logger.warning("no card is written: %s", error)
            return
        if self.is_world_process_zero():
            write_text(self.args.folder / "recipe.yaml", recipe.to_yaml())
        self.report(recipe)

    def report(self, recipe: Recipe, plain_step_seconds: float | None = None) -> tuple[Metrics, list[Path]]:
        """Writes metrics.json, pictures, the backbone and its card; call it on all processes.

        Args:
            plain_step_seconds: measured seconds of a step of the plain recipe, for the measured speed-up.

        Returns:
            What `metrics.json` holds, and the files that were written (none on other processes than the main one).
        """
        metrics = collect_metrics(self._facts(recipe, plain_step_seconds))
        with unsharded(self.model):  # on all processes, although only one writes
            if not self.is_world_process_zero():
                return metrics, []
            written = write_report(self.args.folder, recipe, metrics, self.train_dataset, self.curriculum)
            written.append(self.export_backbone(self.args.folder / "backbone"))
        write_card(written[-1], metrics, recipe)
        return metrics, written

    def _facts(self, recipe: Recipe, plain_step_seconds: float | None) -> RunFacts:
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
            energy=energy_so_far(self),
            device=self.args.device,
            processes=self.args.world_size,
        )

    def predicted_cost(self) -> Cost:
        """What the whole run costs."""
        raise TypeError(f"{type(self).__name__} must define predicted_cost()")

    @property
    def was_stopped(self) -> bool:
        """Whether the run ended early; its weights are then not worth a push."""
        return False

    @property
    def _repository(self) -> str:
        return self.hub_model_id or repository_name(self.args)

    @property
    def _pushes_state(self) -> bool:
        return self.args.hub_strategy == HubStrategy.CHECKPOINT


def _warn_if_failed(upload: Future) -> None:
    error = upload.exception()
    if error is not None:
        logger.warning("a checkpoint was not pushed, training goes on: %s", error)
