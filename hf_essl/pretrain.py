"""Pretrains a backbone from a recipe: `hf-essl pretrain RECIPE`, or `accelerate launch -m hf_essl pretrain RECIPE`."""

import copy
import shutil
import statistics
import time
from pathlib import Path

import torch
from transformers import set_seed

from hf_essl.common import Interrupted, write_text
from hf_essl.config.resume import IMAGES
from hf_essl.cost import Cost
from hf_essl.data import Images, image_count, load_images
from hf_essl.evaluation.protocols import PROTOCOLS
from hf_essl.hub.push import check_access, push_finished_run
from hf_essl.recipe import Recipe, flat_fields, load_recipe
from hf_essl.reporting.metrics import Metrics, read_metrics
from hf_essl.reporting.reached import finished_baseline
from hf_essl.reporting.report import result_table
from hf_essl.run_folder import METRICS, RECIPE, checkpoints, is_trained
from hf_essl.run_lock import run_lock
from hf_essl.selection import plain_views
from hf_essl.storage import check_writable, storage_errors
from hf_essl.trainer import SSLTrainer
from hf_essl.training.checkpoints import find_checkpoint
from hf_essl.training.layout import compile_backbones
from hf_essl.training.optimizer import build_optimizer
from hf_essl.training.run_state import RunState
from hf_essl.training.step import endless, run_step
from hf_essl.views.crops import describe_crops


def pretrain(recipe: Recipe, images: Images | None = None) -> Metrics:
    """Trains a recipe to its end and writes its report; returns the content of `metrics.json`.

    Args:
        images: those of the recipe, if they are loaded already.

    Raises:
        ValueError: for what cannot work, before any model is built.
        Diverged: if the run was lost, see `SSLTrainer.train`.
        Interrupted: if Ctrl-C, SIGTERM or SIGHUP stopped it; a checkpoint is saved.
        StorageError: if a checkpoint cannot be written; the earlier ones are kept.
    """
    recipe.check_network()
    check_access(recipe.training)
    check_resume(recipe)
    if recipe.training.process_index != 0:
        return _pretrain(recipe, images)
    check_writable(recipe.training.folder)
    with run_lock(recipe.training.folder):
        return _pretrain(recipe, images)


def _pretrain(recipe: Recipe, images: Images | None) -> Metrics:
    folder, wanted = recipe.training.folder, recipe.training.resume_from_checkpoint
    with recipe.training.main_process_first(local=False, desc="preparation of output_dir"):
        prepare_output_dir(recipe)
    trainer = build_trainer(recipe, images)
    main, cost = trainer.is_world_process_zero(), trainer.predicted_cost()
    checkpoint = trainer.open_checkpoint(wanted)
    if trainer.is_finished and (report := finished_report(folder)) is not None:
        if main:
            print(f"{checkpoint} is the end of the run, and its report is in {folder}; nothing is left to train")
        return report
    recipe.changes = tuple(trainer.run_state.changes)
    if main:
        (folder / METRICS).unlink(missing_ok=True)  # a run that has it is finished
        write_text(folder / RECIPE, recipe.to_yaml())
        print(describe_run(trainer, recipe, cost), flush=True)
        print("\n".join(describe_resume(trainer, checkpoint)), end="", flush=True)
    trainer.train(resume_from_checkpoint=checkpoint)
    if (number := trainer.stop_on_signal.received) is not None:
        raise Interrupted(f"stopped by {number.name} after step {trainer.state.global_step}", 128 + number)
    return _report(trainer, recipe)


def _report(trainer: SSLTrainer, recipe: Recipe) -> Metrics:
    main, timed = trainer.is_world_process_zero(), recipe.training.measure_speedup and trainer.args.world_size == 1
    plain_seconds = plain_step_seconds(trainer) if timed else None
    need = sum(value.nbytes for value in trainer.model.backbone.state_dict().values())
    kept = "the checkpoints are kept: free some space, and --resume_from_checkpoint true writes the report"
    with storage_errors(recipe.training.folder, need, kept):
        metrics, written = trainer.report(recipe, plain_seconds)
    if main:
        results = result_table(metrics, finished_baseline(recipe, metrics))
        print(f"\n{results}\n\nwrote {', '.join(str(path) for path in written)}", flush=True)
    if main and recipe.training.push_to_hub and (url := push_finished_run(recipe.training)):
        print(f"pushed to {url}", flush=True)
    return metrics


def build_trainer(recipe: Recipe, images: Images | None = None) -> SSLTrainer:
    """Images (or those given), model and trainer of a recipe; a network that cannot work is reported first."""
    recipe.check_network()
    images = images or load_images(recipe.data, recipe.training.device)
    set_seed(recipe.training.seed)
    return SSLTrainer(
        recipe.build_model(),
        recipe.training,
        images.train,
        images.eval,
        bank_dataset=images.bank,
        view_args=recipe.views,
        data_args=recipe.data,
    )


def check_resume(recipe: Recipe) -> None:
    """Raises ValueError for a checkpoint that cannot be resumed with this recipe, before images are loaded."""
    training = recipe.training
    checkpoint = find_checkpoint(training.folder, training.resume_from_checkpoint, speaks=False)
    if checkpoint is None:
        return
    settings = flat_fields(recipe.model, recipe.data, recipe.views, training)
    settings["data_seed"] = training.seed if training.data_seed is None else training.data_seed
    past = RunState.read(checkpoint)
    known_later = {key: past.settings[key] for key in ("dataset", IMAGES) if key in past.settings}
    past.resume_with(settings | known_later, checkpoint)


def describe_resume(trainer: SSLTrainer, checkpoint: str | None) -> list[str]:
    """Where a resumed run continues and what it changes; each line ends the one before."""
    if checkpoint is None:
        return [""]
    past = trainer.run_state
    rest = "nothing is left to train, the report follows" if trainer.is_finished else "training continues"
    changed = [f"  {change}" for change in past.changes if change.step == past.step]
    return [f"resumed from {checkpoint}: {rest}", *changed, ""]


def finished_report(folder: Path) -> Metrics | None:
    """The report of a finished run; None if it was interrupted before its last file."""
    try:
        return read_metrics(folder)
    except ValueError:
        return None


def complete_report(run: str | Path) -> None:
    """Writes the report of a run that was interrupted after its last step. Any other folder stays as it is.

    Nothing is pushed. Raises ValueError as `pretrain`, for a run that cannot be continued here.
    """
    folder = Path(run)
    if finished_report(folder) is not None or not (folder / RECIPE).is_file() or not is_trained(folder):
        return
    print(f"{folder} was interrupted after its last step; its report is completed", flush=True)
    words = ["--output_dir", str(folder), "--resume_from_checkpoint", "true", "--push_to_hub", "false"]
    try:
        pretrain(load_recipe(folder / RECIPE, words))
    except ValueError as error:
        raise ValueError(f"{folder} has no report, and it cannot be completed here: {error}") from error


def prepare_output_dir(recipe: Recipe) -> None:
    """Raises ValueError for a run that would be lost; clears one that may be overwritten."""
    folder = recipe.training.folder
    if recipe.training.resume_from_checkpoint or not (checkpoints(folder) or (folder / METRICS).exists()):
        return
    if not recipe.training.overwrite_output_dir:
        raise ValueError(
            f"output_dir {folder} already holds a run; resume it with --resume_from_checkpoint true, start over with "
            f"--overwrite_output_dir, or choose another --output_dir"
        )
    for name in (METRICS, *(f"{protocol}.json" for protocol in PROTOCOLS)):  # of the old run's weights
        (folder / name).unlink(missing_ok=True)
    for checkpoint in checkpoints(folder):
        shutil.rmtree(checkpoint)


def describe_run(trainer: SSLTrainer, recipe: Recipe, cost: Cost) -> str:
    """What is about to run, in a few lines."""
    millions = sum(p.numel() for p in trainer.model.backbone.parameters()) / 1e6
    processes = f" in {trainer.args.world_size} processes" if trainer.args.world_size > 1 else ""
    views = recipe.views
    local = f", with {views.local_views} local views of {views.local_resolution} px," if views.local_views else ""
    trained, judged = image_count(trainer.train_dataset), image_count(trainer.eval_dataset)
    return (
        f"{recipe.model.method} on {recipe.model.backbone} ({millions:.1f} M parameters)\n"
        f"{trainer.train_dataset.name}: {f'{trained:,}' if trained else 'streamed'} training images, "
        f"{f'{judged:,} to evaluate on' if judged else 'none to evaluate on'}\n"
        f"{describe_crops(views, recipe.data.image_size, getattr(trainer.train_dataset, 'aspects', None))}\n"
        f"{cost.steps:,} steps of {cost.images_per_step} images{local}{processes}: "
        f"{cost.counted_petaflops:.4g} petaFLOPs, "
        f"{cost.counted_speedup:.2f} x less than the plain recipe at equal epochs\n"
        f"into {recipe.training.output_dir}"
    )


def plain_step_seconds(trainer: SSLTrainer, warmup: int = 2, steps: int = 5) -> float:
    """Median seconds of a step of the plain recipe: full size, two views and its local ones, no selection.

    Loading, views, forward, backward and optimizer are timed on a copy of the model, so the run does not change. Only
    for a single process, since the copy exchanges no gradients.
    """
    model = copy.deepcopy(trainer.model).train()
    compile_backbones(model, trainer.args)
    optimizer = build_optimizer(model, trainer.args)
    if trainer.image_targets.table is None:  # the run was finished before this process
        trainer.image_targets.fill(trainer.model, trainer.train_dataset, trainer.accelerator)
    seconds: list[float] = []
    loader = endless(trainer.get_train_dataloader())
    for _ in range(warmup + steps):
        start = time.perf_counter()
        batch = trainer.feed(next(loader))
        views = plain_views(trainer.views, batch["image"], trainer.views.args.resolution, batch["aspect"])
        with trainer.show_images(batch, model):
            run_step(model, views, optimizer, epoch=model.frozen_epochs, autocast=trainer.accelerator.autocast)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    loader.close()
    return statistics.median(seconds[warmup:])
