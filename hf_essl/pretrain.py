"""Pretrains a backbone from a recipe: `hf-essl pretrain RECIPE`, or `accelerate launch -m hf_essl.pretrain RECIPE`."""

from __future__ import annotations

import shutil

from transformers import set_seed

from hf_essl.acceleration import whole_parameters
from hf_essl.checkpoints import checkpoints, last_complete_checkpoint
from hf_essl.cost import Cost, estimate_cost
from hf_essl.data import Images, image_count, load_images
from hf_essl.errors import Interrupted
from hf_essl.files import write_text
from hf_essl.hub.push import check_access, push_finished_run
from hf_essl.methods.base import SSLModel, check_backbone
from hf_essl.recipe import Recipe
from hf_essl.reporting.report import collect_metrics, result_table, write_report
from hf_essl.speed import plain_step_seconds
from hf_essl.trainer import SSLTrainer


def pretrain(recipe: Recipe) -> dict:
    """Trains a recipe to its end and writes its report.

    Returns:
        What `metrics.json` holds.

    Raises:
        ValueError: for what cannot work, before any model is built.
        Diverged: where the run was lost, see `SSLTrainer.train`.
        Interrupted: where Ctrl-C or SIGTERM stopped it; a checkpoint is saved.
    """
    check_backbone(recipe.model.backbone)
    check_access(recipe.training)
    prepare_output_dir(recipe)
    trainer = build_trainer(recipe)
    cost = predict_cost(trainer)
    main = trainer.is_world_process_zero()
    if main:
        write_text(recipe.training.folder / "recipe.yaml", recipe.to_yaml())
        print(describe_run(trainer, recipe, cost), flush=True)
    trainer.train(resume_from_checkpoint=recipe.training.resume_from_checkpoint)
    if trainer.stop_on_signal.received:
        raise Interrupted(f"stopped by {trainer.stop_on_signal.received.name} after step {trainer.state.global_step}")
    timed = recipe.training.measure_speedup and trainer.args.world_size == 1
    metrics = collect_metrics(trainer, recipe, cost, plain_step_seconds(trainer) if timed else None)
    with whole_parameters(trainer.model):  # all processes, though one writes
        written = write_report(trainer, recipe, metrics) if main else []
    if main:
        print(f"\n{result_table(metrics)}\n\nwrote {', '.join(str(path) for path in written)}", flush=True)
    if main and recipe.training.push_to_hub and (url := push_finished_run(recipe.training)):
        print(f"pushed to {url}", flush=True)
    return metrics


def build_trainer(recipe: Recipe, images: Images | None = None) -> SSLTrainer:
    """Images (or those given), model and trainer of a recipe, in this order: a missing folder is told first."""
    images = images or load_images(recipe.data, recipe.training.device)
    set_seed(recipe.training.seed)
    model = SSLModel.from_timm(
        recipe.model.backbone,
        recipe.model.method,
        pretrained=recipe.model.pretrained,
        backbone_args=recipe.model.backbone_args,
        method_args=recipe.model.method_args,
    )
    return SSLTrainer(
        model,
        recipe.training,
        images.train,
        images.eval,
        bank_dataset=images.bank,
        view_args=recipe.views,
        data_args=recipe.data,
    )


def predict_cost(trainer: SSLTrainer) -> Cost:
    """What the whole run costs, before it runs."""
    args = trainer.args
    images_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    views, steps = trainer.views.args, trainer.planned_steps()
    return estimate_cost(trainer.model, views, args, steps, images_per_step, trainer.flop_counter)


def prepare_output_dir(recipe: Recipe) -> None:
    """Refuses to write over a run that is there, unless it is resumed or overwritten on purpose.

    Raises:
        ValueError: for a run that would be lost, or where there is nothing to resume.
    """
    folder = recipe.training.folder
    if recipe.training.resume_from_checkpoint:
        if recipe.training.resume_from_checkpoint is True:
            last_complete_checkpoint(folder)
        return
    if not (checkpoints(folder) or (folder / "metrics.json").exists()):
        return
    if not recipe.training.overwrite_output_dir:
        raise ValueError(
            f"output_dir {folder} holds a run already; go on with --resume_from_checkpoint true, start anew with "
            f"--overwrite_output_dir, or name another --output_dir"
        )
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
        f"{cost.steps:,} steps of {cost.images_per_step} images{processes}: {cost.measured_petaflops:.4g} petaFLOPs, "
        f"{cost.measured_speedup:.2f} x less than the plain recipe at equal epochs\n"
        f"into {recipe.training.output_dir}"
    )


if __name__ == "__main__":
    import sys

    from hf_essl.cli import main

    sys.exit(main(["pretrain", *sys.argv[1:]]))
