"""The arguments of transformers.Trainer that SSLTrainer does not have, each with the reason."""

from collections.abc import Mapping
from typing import Any

from hf_essl.common import unknown
from hf_essl.config import SSLTrainingArguments

REFUSED = {
    "compute_metrics": "the evaluation compares features and has no logits; use what `evaluate` or `predict` returns",
    "preprocess_logits_for_metrics": "the evaluation compares features and has no logits",
    "compute_loss_func": "the loss is the method's; write a method, see the README",
    "data_collator": "batches are uint8 images, and views are made on the device; set fields of ViewArguments",
    "processing_class": "images need no tokenizer; export writes the preprocessing",
    "optimizer_cls_and_kwargs": "set optim and optim_args, or pass optimizers=(optimizer, None)",
}
KNOWN = (
    "model args train_dataset eval_dataset bank_dataset model_init view_args data_args callbacks optimizers".split()
)


def check_arguments(args: Any, optimizers: tuple[Any, Any], others: Mapping[str, Any]) -> None:
    """Raises ValueError for an argument that would be ignored, TypeError for one that does not exist."""
    if not isinstance(args, SSLTrainingArguments):
        raise ValueError(
            f"args is a {type(args).__name__}; SSLTrainer takes hf_essl.SSLTrainingArguments, with the same fields"
        )
    for name, value in others.items():
        if name not in REFUSED:
            raise TypeError(unknown("an argument of SSLTrainer", name, KNOWN))
        if value is not None:
            raise ValueError(f"{name} is set, which SSLTrainer does not accept: {REFUSED[name]}")
    if optimizers[1] is not None:
        raise ValueError("optimizers has a scheduler, which SSLTrainer does not accept: set lr_schedule")
