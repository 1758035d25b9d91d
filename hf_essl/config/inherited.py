"""What becomes of each field inherited from transformers.TrainingArguments: it works, is refused, or means nothing.

A test compares the three with the fields of the installed transformers, so that a new field has to be placed here.
"""

import os
from collections.abc import Mapping, Set
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from hf_essl.config.fields import Count, NonNegative, NonNegativeInt, Positive, Share, default_of, on_resume

_LANGUAGE = "it is made for language models; remove it"
_NO_LOSS = "the evaluation compares features and computes no loss or logits; remove it"
_PRECISION = (
    "features during the training are extracted in the training's precision; `hf-essl evaluate --mixed_precision` "
    "chooses another"
)

LAUNCHED: Mapping[str, str] = {
    "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM",
    "ACCELERATE_USE_FSDP": "FSDP",
}
"""The engines that `accelerate launch` selects by a variable, by their name as `distributed_type`."""
UNSUPPORTED = ("DEEPSPEED", "MEGATRON_LM", "TP")

REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "lr_scheduler_type": (("linear",), "set lr_schedule instead"),
    "lr_scheduler_kwargs": ((None, {}), "set lr_schedule, warmup_epochs and one_cycle_fraction instead"),
    "warmup_steps": ((0,), "set warmup_epochs instead"),
    "optim_target_modules": ((None,), "all parameters share one optimizer; remove it"),
    "label_smoothing_factor": ((0.0,), "the losses use no labels; remove it"),
    "bf16_full_eval": ((False,), _PRECISION),
    "fp16_full_eval": ((False,), _PRECISION),
    "use_liger_kernel": ((False,), _LANGUAGE),
    "liger_kernel_config": ((None,), _LANGUAGE),
    "neftune_noise_alpha": ((None,), _LANGUAGE),
    "include_num_input_tokens_seen": (("no", False), _LANGUAGE),
    "length_column_name": (("length",), "images have no length; remove it"),
    "train_sampling_strategy": (("random", "sequential"), "images have no length; choose random or sequential"),
    "label_names": ((None,), "labels reach the evaluation only; set label_column"),
    "remove_unused_columns": ((False,), "the loaders need every column of a batch; set it to false"),
    "logging_nan_inf_filter": ((False,), "a filtered loss hides divergence; set it to false"),
    "prediction_loss_only": ((False,), _NO_LOSS),
    "eval_do_concat_batches": ((True,), _NO_LOSS),
    "eval_use_gather_object": ((False,), _NO_LOSS),
    "eval_accumulation_steps": ((None,), _NO_LOSS),
    "include_for_metrics": (([], None), _NO_LOSS),
    "batch_eval_metrics": ((False,), _NO_LOSS),
    "deepspeed": ((None,), "DeepSpeed is not supported; use DDP or FSDP, see recipes/accelerate"),
    "parallelism_config": ((None,), "it is not supported; use DDP or FSDP, see recipes/accelerate"),
    "enable_jit_checkpoint": ((False,), "Ctrl-C and SIGTERM save a checkpoint anyway; remove it"),
    "hub_token": ((None,), "it would be stored in every checkpoint; set HF_TOKEN or run `hf auth login` instead"),
}
"""The values that each of these fields may have, and what to do instead of another one."""

WITHOUT_MEANING: Mapping[str, str] = {
    "average_tokens_across_devices": "the loss is a mean over images",
    "use_cache": "it is the key-value cache of language models",
    "do_train": "it is for scripts; the command decides",
    "do_eval": "it is for scripts; the command decides",
    "do_predict": "it is for scripts; the command decides",
    "local_rank": "the launcher sets it",
}
"""Fields that may have any value and change nothing, and why."""

WORKS = frozenset(
    """
    max_steps optim_args adam_beta1 adam_beta2 adam_epsilon gradient_accumulation_steps bf16 fp16 tf32
    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
    torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps auto_find_batch_size
    logging_strategy logging_first_step log_on_each_node log_level log_level_replica disable_tqdm report_to run_name
    project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay
    eval_on_start save_only_model save_strategy save_steps save_on_each_node push_to_hub
    hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision load_best_model_at_end
    metric_for_best_model greater_is_better ignore_data_skip restore_callback_states_from_checkpoint
    full_determinism seed data_seed use_cpu accelerator_config dataloader_num_workers dataloader_pin_memory
    dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order
    ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config debug
    skip_memory_metrics resume_from_checkpoint
    """.split()
)
"""Fields that act as transformers documents them."""

OFTEN_USED: Mapping[str, str] = {
    "resume_from_checkpoint": "true continues an interrupted run from its last whole checkpoint; or a path of one.",
    "max_steps": "Optimizer steps, instead of num_train_epochs.",
    "bf16": "Half precision on a GPU; the recipes train in float32.",
    "gradient_accumulation_steps": "Passes per optimizer step.",
    "dataloader_num_workers": "Processes that load images.",
    "torch_compile": "Compile the backbone.",
    "save_strategy": "no, epoch, steps (see save_steps), or best.",
    "report_to": "Trackers, such as wandb or tensorboard.",
    "seed": "Of weights, order and views.",
    "use_cpu": "Do not use a GPU.",
}
"""Of those, what a user needs first, in words for `--help`."""

INHERITED_RULES = {
    **on_resume(free=" ".join([*REFUSED, *WITHOUT_MEANING])),  # their values are the same, or mean nothing
    **on_resume(
        acts="max_steps adam_beta1 adam_beta2 adam_epsilon bf16 tf32 ignore_data_skip",
        fixed="optim_args fp16 seed data_seed metric_for_best_model greater_is_better train_sampling_strategy fsdp "
        "fsdp_config",
        free="""
        gradient_accumulation_steps
        activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
        torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps auto_find_batch_size
        logging_strategy logging_first_step log_on_each_node log_level log_level_replica disable_tqdm report_to
        run_name project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay
        eval_on_start save_only_model save_strategy save_steps save_on_each_node push_to_hub hub_private_repo
        hub_model_id hub_strategy hub_always_push hub_revision load_best_model_at_end
        restore_callback_states_from_checkpoint full_determinism use_cpu accelerator_config dataloader_num_workers
        dataloader_pin_memory dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order
        ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout debug skip_memory_metrics
        resume_from_checkpoint
        """,
    ),
}
"""What a resumed run does with another value of an inherited field, see `on_resume`."""

_Seed = Annotated[int, Field(ge=0, lt=2**32)]  # numpy takes no others
_LogLevel = Literal["detail", "debug", "info", "warning", "error", "critical", "passive"]

RANGES: Mapping[str, Any] = {
    "max_steps": Literal[-1] | Count,
    "adam_beta1": Share,
    "adam_beta2": Share,
    "adam_epsilon": NonNegative,
    "gradient_accumulation_steps": Count,
    "torch_compile_mode": Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None,
    "torch_empty_cache_steps": Count | None,
    "log_level": _LogLevel,
    "log_level_replica": _LogLevel,
    "eval_steps": Positive | None,
    "eval_delay": NonNegative,
    "save_steps": Positive,
    "seed": _Seed,
    "data_seed": _Seed | None,
    "dataloader_num_workers": NonNegativeInt,
    "dataloader_prefetch_factor": Count | None,
    "dataloader_multiprocessing_context": Literal["fork", "spawn", "forkserver"] | None,
    "ddp_bucket_cap_mb": Count | None,
    "ddp_backend": Literal["nccl", "gloo", "mpi", "ccl", "xccl", "hccl", "cncl", "mccl"] | None,
    "ddp_timeout": Count,
}
"""The types of those that transformers declares more widely than what works."""


def check_inherited(values: Any) -> None:
    """Raises ValueError for a field with a value that would be ignored, or do harm."""
    for name, (accepted, instead) in REFUSED.items():
        value = getattr(values, name)
        plain = getattr(value, "value", value)  # of an enumeration
        if plain not in accepted:
            shown = "set" if name == "hub_token" else repr(plain)
            raise ValueError(f"{name} is {shown}, which is refused: {instead}")
    config = values.accelerator_config
    for name in ("split_batches", "dispatch_batches"):
        if config.get(name) if isinstance(config, Mapping) else getattr(config, name, None):
            raise ValueError(f"accelerator_config has {name}, which is refused: each process loads its own batches")


def check_engine(values: Any) -> None:
    """Raises ValueError for an engine that cannot train here; call it before transformers tries to import one."""
    if values.deepspeed is not None:
        raise ValueError(f"deepspeed is {values.deepspeed!r}, which is refused: {REFUSED['deepspeed'][1]}")
    on_cpu = values.use_cpu or not torch.accelerator.is_available()
    for variable, engine in LAUNCHED.items():
        if os.environ.get(variable, "false").lower() in ("1", "true", "yes", "y", "t", "on"):
            check_launched(engine, os.environ.get("FSDP_VERSION", "1"), on_cpu)
    if values.fsdp:
        config = values.fsdp_config if isinstance(values.fsdp_config, Mapping) else {}
        check_launched("FSDP", config.get("version", config.get("fsdp_version", 2)), on_cpu)


def check_launched(engine: str, version: Any, on_cpu: bool) -> None:
    """Raises ValueError if a launch configuration chooses an engine that cannot train here.

    Args:
        engine: its `distributed_type`.
        version: of FSDP.
        on_cpu: accelerate has no FSDP there and would train by DDP without a word.
    """
    if engine in UNSUPPORTED:
        raise ValueError(
            f"accelerate's configuration chooses {engine}, which is not supported; "
            f"use DDP or FSDP, see recipes/accelerate"
        )
    if engine == "FSDP" and str(version) != "2":
        raise ValueError(
            f"FSDP of version {version} hides the parts of a model that the selection pass calls; "
            f"set fsdp_version: 2, as recipes/accelerate/fsdp.yaml does"
        )
    if engine == "FSDP" and on_cpu:
        raise ValueError("FSDP needs GPUs: accelerate has none for a CPU; use DDP, --accelerate_config cpu")


def ignored_lines(values: Any) -> list[str]:
    """A line for each field that differs from its default and means nothing here."""
    found = {name: getattr(values, name) for name in WITHOUT_MEANING if name != "local_rank"}  # a launcher may set it
    return [
        f"{name} is {value!r} and has no effect: {WITHOUT_MEANING[name]}"
        for name, value in found.items()
        if value != default_of(type(values), name)
    ]


def describe_inherited(shown: Set[str] = frozenset()) -> str:
    """The three groups, for `--help`, without the working fields that it shows elsewhere."""
    refused = ", ".join(
        f"{name} (except {' and '.join(REFUSED[name][0])})" if name == "train_sampling_strategy" else name
        for name in sorted(REFUSED)
    )
    meaningless = ", ".join(f"{name} ({why})" for name, why in WITHOUT_MEANING.items())
    return (
        f"The other fields of transformers.TrainingArguments work too "
        f"(https://huggingface.co/docs/transformers/main_classes/trainer): {', '.join(sorted(WORKS - shown))}. "
        f"Refused, because they would be ignored: {refused}. Without a meaning here: {meaningless}."
    )
