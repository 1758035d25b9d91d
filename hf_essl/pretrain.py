"""Pretrains a backbone from a recipe: `hf-essl pretrain RECIPE`, or `accelerate launch -m hf_essl pretrain RECIPE`."""

import copy
import shutil
import statistics
import time

import torch
from transformers import set_seed

from hf_essl.common import Interrupted, write_text
from hf_essl.cost import Cost
from hf_essl.data import Images, image_count, load_images
from hf_essl.hub.push import check_access, push_finished_run
from hf_essl.recipe import Recipe
from hf_essl.reporting.metrics import Metrics
from hf_essl.reporting.reached import finished_baseline
from hf_essl.reporting.report import result_table
from hf_essl.run_folder import checkpoints, last_complete_checkpoint
from hf_essl.trainer import SSLTrainer
from hf_essl.training.layout import compile_backbones
from hf_essl.training.optimizer import build_optimizer
from hf_essl.training.step import endless, run_step
from hf_essl.views.crops import describe_crops


def pretrain(recipe: Recipe, images: Images | None = None) -> Metrics:
    """Trains a recipe to its end and writes its report; returns the content of `metrics.json`.

    Args:
        images: those of the recipe, if they are loaded already.

    Raises:
        ValueError: for what cannot work, before any model is built.
        Diverged: if the run was lost, see `SSLTrainer.train`.
        Interrupted: if Ctrl-C or SIGTERM stopped it; a checkpoint is saved.
    """
    recipe.check_network()
    check_access(recipe.training)
    with recipe.training.main_process_first(local=False, desc="preparation of output_dir"):
        prepare_output_dir(recipe)
    trainer = build_trainer(recipe, images)
    main, cost = trainer.is_world_process_zero(), trainer.predicted_cost()
    if main:
        write_text(recipe.training.folder / "recipe.yaml", recipe.to_yaml())
        print(describe_run(trainer, recipe, cost), flush=True)
    trainer.train(resume_from_checkpoint=recipe.training.resume_from_checkpoint)
    if trainer.stop_on_signal.received:
        raise Interrupted(f"stopped by {trainer.stop_on_signal.received.name} after step {trainer.state.global_step}")
    timed = recipe.training.measure_speedup and trainer.args.world_size == 1
    metrics, written = trainer.report(recipe, plain_step_seconds(trainer) if timed else None)
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


def prepare_output_dir(recipe: Recipe) -> None:
    """Raises ValueError for a run that would be lost, or nothing to resume; clears one that may be overwritten."""
    folder = recipe.training.folder
    if recipe.training.resume_from_checkpoint:
        if recipe.training.resume_from_checkpoint is True:
            last_complete_checkpoint(folder)
        return
    if not (checkpoints(folder) or (folder / "metrics.json").exists()):
        return
    if not recipe.training.overwrite_output_dir:
        raise ValueError(
            f"output_dir {folder} already holds a run; resume it with --resume_from_checkpoint true, start over with "
            f"--overwrite_output_dir, or choose another --output_dir"
        )
    (folder / "metrics.json").unlink(missing_ok=True)  # of the old run, so that the new one is not taken for finished
    for checkpoint in checkpoints(folder):
        shutil.rmtree(checkpoint)


def describe_run(trainer: SSLTrainer, recipe: Recipe, cost: Cost) -> str:
    """What is about to run, in a few lines."""
    millions = sum(p.numel() for p in trainer.model.backbone.parameters()) / 1e6
    processes = f" in {trainer.args.world_size} processes" if trainer.args.world_size > 1 else ""
    trained, judged = image_count(trainer.train_dataset), image_count(trainer.eval_dataset)
    return (
        f"{recipe.model.method} on {recipe.model.backbone} ({millions:.1f} M parameters)\n"
        f"{trainer.train_dataset.name}: {f'{trained:,}' if trained else 'streamed'} training images, "
        f"{f'{judged:,} to evaluate on' if judged else 'none to evaluate on'}\n"
        f"{describe_crops(recipe.views, recipe.data.image_size, getattr(trainer.train_dataset, 'aspects', None))}\n"
        f"{cost.steps:,} steps of {cost.images_per_step} images{processes}: {cost.counted_petaflops:.4g} petaFLOPs, "
        f"{cost.counted_speedup:.2f} x less than the plain recipe at equal epochs\n"
        f"into {recipe.training.output_dir}"
    )


def plain_step_seconds(trainer: SSLTrainer, warmup: int = 2, steps: int = 5) -> float:
    """Median seconds of a step of the plain recipe: full size, two views, no selection.

    Loading, views, forward, backward and optimizer are timed on a copy of the model, so the run does not change. Only
    for a single process, since the copy exchanges no gradients.
    """
    model = copy.deepcopy(trainer.model).train()
    compile_backbones(model, trainer.args)
    optimizer = build_optimizer(model, trainer.args)
    seconds: list[float] = []
    loader = endless(trainer.get_train_dataloader())
    for _ in range(warmup + steps):
        start = time.perf_counter()
        batch = trainer.feed(next(loader))
        first, second = trainer.views(batch["image"], trainer.views.args.resolution, batch["aspect"])
        views, autocast = {"first": first, "second": second}, trainer.accelerator.autocast
        run_step(model, views, optimizer, epoch=model.frozen_epochs, autocast=autocast)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    loader.close()
    return statistics.median(seconds[warmup:])
