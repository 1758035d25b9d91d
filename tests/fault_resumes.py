"""Resumes with one other setting: it acts and is recorded, is refused with both values, or changes no weight."""

import shutil
import tempfile
from pathlib import Path

from hf_essl.config.resume import IMAGES, resume_rules
from hf_essl.config.values import group_of
from hf_essl.config.views import ViewArguments
from hf_essl.training.run_state import RunState
from tests.fault_runs import SAVING, count, same_weights, saved_run
from tests.helpers import small_trainer

OTHER = {
    "method": "byol",
    "learning_rate": 0.03,
    "logging_steps": 3,
    "optim": "adamw_torch",
    "weight_decay": 0.01,
    "save_total_limit": 5,
    "seed": 7,
    "min_momentum": 0.7,
    "max_momentum": 0.99,
    "measure_speedup": False,
    "num_views": 4,
    "max_grad_norm": 1.0,
    "dataloader_num_workers": 1,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 3,
    "channels_last": False,
    "knn_k": 3,
    "lr_schedule": "cosine_warmup",
    "per_device_eval_batch_size": 8,
    "selection": "random",
    "flip_p": 0.1,
    "max_unreadable": 0.2,
    "eval_crop_pct": 1.0,
    "crop_scale": [0.5, 1.0],
    "view_executor": "kornia",
    "resolution_schedule": "progressive",
    "min_magnitude": 1.0,
    "save_steps": 3,
    "online_probe": True,
    "jitter_p": 0.2,
    "disable_tqdm": False,
    "fix_predictor_lr": False,
    "grayscale_p": 0.0,
    "knn_every_epochs": 1,
    "decay_norm_and_bias": False,
    "blur_p": [0.1],
    "on_divergence": "warn",
    "selection_resolution": 24,
    "warmup_epochs": 0.5,
    "logging_first_step": True,
}
NOT_BITWISE = {"view_executor", "channels_last"}  # equal up to rounding


def holds(key: str, value: object, folder: Path) -> bool:
    views = {key: value} if group_of(key) is ViewArguments else {}
    training = {} if views or key == "max_unreadable" else {key: value}
    expected = resume_rules()[key]
    is_refused = expected == "fixed" or key == "per_device_train_batch_size"
    try:
        trainer = small_trainer(folder, views=views, **{**SAVING, **training})
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    except ValueError as error:
        names = IMAGES if key == "per_device_train_batch_size" else key
        return is_refused and str(error).startswith(f"{names} is {value!r}") and "\n" not in str(error)
    if is_refused:
        return False
    last = f"checkpoint-{trainer.state.max_steps}"
    recorded = [change.field for change in RunState.read(folder / last).changes]
    weights = folder / last / "model.safetensors"
    same = last == "checkpoint-12" and same_weights(weights, saved_run() / last / "model.safetensors")
    if expected == "acts":
        return recorded == [key] and not same
    return recorded == [] and (same or key in NOT_BITWISE)


def run(number: int) -> tuple[int, int]:
    root, cases = Path(tempfile.mkdtemp(prefix="faults-")), []
    for key in list(OTHER)[:number]:
        folder = shutil.copytree(saved_run(), root / key)
        cases.append((f"{key}: {OTHER[key]}", lambda key=key, at=folder: holds(key, OTHER[key], at)))
    try:
        return count(cases)
    finally:
        shutil.rmtree(root)
