"""The card of a run from the Python API, by a callback."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from transformers import TrainerCallback

if TYPE_CHECKING:
    from hf_essl.trainer import SSLTrainer

logger = logging.getLogger(__name__)


class CardCallback(TrainerCallback):
    """Writes the report of a run, its backbone and its card, when it has ended; a run that was cut short has none.

    trainer.add_callback(CardCallback(trainer))
    """

    def __init__(self, trainer: SSLTrainer):
        self.trainer = trainer

    def on_train_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            self.trainer.create_model_card()


def write_trainer_report(trainer: SSLTrainer) -> None:
    """Writes recipe.yaml, metrics.json, pictures, backbone and card of a finished run; call it on all processes.

    A run whose recipe is not known, or that has not ended, gets none, with a warning.
    """
    from hf_essl.acceleration import whole_parameters
    from hf_essl.files import write_text
    from hf_essl.pretrain import predict_cost
    from hf_essl.recipe import Recipe
    from hf_essl.reporting.report import collect_metrics, write_report

    state = trainer.state
    if not state.max_steps or state.global_step < state.max_steps:
        logger.warning("no card is written: the run has not ended (step %d)", state.global_step)
        return
    try:
        recipe = Recipe.of(trainer)
    except ValueError as error:
        logger.warning("no card is written: %s", error)
        return
    metrics = collect_metrics(trainer, recipe, predict_cost(trainer), None)
    with whole_parameters(trainer.model):
        if trainer.is_world_process_zero():
            write_text(recipe.training.folder / "recipe.yaml", recipe.to_yaml())
            write_report(trainer, recipe, metrics)
