"""The card of a run from the Python API, by a callback."""

from __future__ import annotations

from transformers import TrainerCallback

from hf_essl.hub.trainer import HubTrainer


class CardCallback(TrainerCallback):
    """Writes the report of a run, its backbone and its card, when it has ended; a run that was cut short has none.

    trainer.add_callback(CardCallback(trainer))
    """

    def __init__(self, trainer: HubTrainer):
        self.trainer = trainer

    def on_train_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            self.trainer.create_model_card()
