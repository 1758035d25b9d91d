"""Measured and predicted speed-up of a recipe over its baseline, from single steps that are timed alternately.

    python tests/benchmarks/speedup.py RECIPE --dataset PATH [--rounds 15] [--threads 1]

Each round times one step of the baseline and, at each size of the recipe's views, one step of the recipe with its
selection in float32 and in bfloat16: images from memory, views, selection, forward and backward pass, and optimizer.
A drift in the machine's speed therefore affects all alike. A time is the median of the rounds. With one thread it is
CPU time, which other programs change less.
"""

import argparse
import statistics
import tempfile
import time

import torch
from torch import Tensor

from hf_essl.config.files import baseline_of
from hf_essl.cost import estimate_cost
from hf_essl.data import load_images
from hf_essl.pretrain import build_trainer
from hf_essl.recipe import find_recipe, load_recipe
from hf_essl.trainer import SSLTrainer
from hf_essl.training.layout import disable_malloc_trim
from hf_essl.training.step import endless, run_step

WARMUP = 3  # rounds that do not count
OVERRIDES = "--cache memory --max_train_samples {batch} --max_eval_samples 1 --report_to none --output_dir {folder}"


def steps(trainer: SSLTrainer, images: Tensor, aspect: Tensor):
    """An endless generator: each `next` is a step of the trainer's recipe at the current size of its views."""
    model, optimizer = trainer.model.train(), trainer.create_optimizer()
    while True:
        views = trainer.render(images, trainer.choose_pair(images, aspect))
        run_step(model, views, optimizer)
        yield


def median_seconds(trainers: dict[str, SSLTrainer], images: Tensor, aspect: Tensor, options) -> dict[tuple, float]:
    """Seconds per step by arm and size of the views."""
    now = time.process_time if options.threads == 1 else time.perf_counter
    found: dict[tuple, list[float]] = {}
    running = {arm: steps(trainer, images, aspect) for arm, trainer in trainers.items()}
    for round_ in range(-WARMUP, options.rounds):
        for arm, trainer in trainers.items():
            for size in trainer.curriculum.shares():
                trainer.views.resolution, trainer.views.tokens = size
                start = now()
                next(running[arm])
                if round_ >= 0:
                    found.setdefault((arm, size), []).append(now() - start)
    return {key: statistics.median(seconds) for key, seconds in found.items()}


def build(options, folder: str) -> tuple[dict[str, SSLTrainer], dict[str, Tensor]]:
    recipe = load_recipe(options.recipe)
    words = OVERRIDES.format(batch=recipe.training.train_batch_size, folder=folder).split()
    words += ["--dataset", options.dataset]
    baseline = baseline_of(find_recipe(options.recipe))
    if baseline is None:
        raise SystemExit(f"{options.recipe} names no baseline")
    arms = {"plain": (baseline, []), "float32": (options.recipe, [])}
    arms["bfloat16"] = (options.recipe, ["--selection_precision", "bf16"])
    recipes = {arm: load_recipe(source, [*words, *extra]) for arm, (source, extra) in arms.items()}
    images = load_images(recipes["plain"].data)
    trainers = {arm: build_trainer(recipe, images) for arm, recipe in recipes.items()}
    return trainers, trainers["plain"].feed(next(endless(trainers["plain"].get_train_dataloader())))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    disable_malloc_trim()  # as in a training
    with tempfile.TemporaryDirectory() as folder:
        trainers, batch = build(options, folder)
        seconds = median_seconds(trainers, batch["image"], batch["aspect"], options)
    plain = next(found for (arm, _), found in seconds.items() if arm == "plain")
    print("| selection | px | ms per step | of a plain step |\n| --- | --- | --- | --- |")
    for (arm, size), found in seconds.items():
        print(f"| {arm if arm != 'plain' else 'none, plain'} | {size} | {1000 * found:.1f} | {found / plain:.2f} |")
    for arm in ("float32", "bfloat16"):
        shares = trainers[arm].curriculum.shares()
        measured = plain / sum(share * seconds[arm, size] for size, share in shares.items())
        counted = predicted(trainers[arm])
        print(f"{arm}: {measured:.2f} x at equal steps, {counted:.2f} x counted, {measured / counted:.2f} of it")


def predicted(trainer: SSLTrainer) -> float:
    """From the counted operations, over a run that is long enough for exact shares."""
    views, batch = trainer.views.args, trainer.args.train_batch_size
    return estimate_cost(trainer.model, views, trainer.curriculum, 10_000, batch, trainer.flop_counter).counted_speedup


if __name__ == "__main__":
    main()
