"""Which part of a plain SimSiam run makes it differ from lightly's: parts are exchanged one at a time.

    python tests/benchmarks/exchange.py DATASET --output FOLDER [--seeds 0 1 2] [--arms lightly hf_essl ...]
    python tests/benchmarks/exchange.py DATASET --output FOLDER --table

Data, network and hyperparameters are those of `peers.py`, in one thread. Each arm is a training loop and the views
that it trains on. Each seed has one run per arm and one JSON file per run; the same command continues. The table
compares each arm with lightly by a paired t test over the seeds that both have.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import peers
import torch
from scipy.stats import ttest_rel
from torchvision.transforms.functional import pil_to_tensor

from hf_essl.config import ViewArguments
from hf_essl.data import CachedImages, Images
from hf_essl.pretrain import build_trainer
from hf_essl.views import Views
from hf_essl.views.views import IMAGENET_MEAN, IMAGENET_STD

ARMS = {  # name: (training loop, views)
    "lightly": ("lightly", "lightly"),
    "our_views": ("lightly", "fixed"),
    "our_views_random_order": ("lightly", "random"),
    "our_crops": ("lightly", "crops"),
    "our_loop": ("hf_essl", "lightly"),
    "hf_essl": ("hf_essl", "fixed"),
    "hf_essl_other_pixel_statistics": ("hf_essl", "fixed, trained with other pixel statistics than evaluated"),
    "hf_essl_random_order": ("hf_essl", "random"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--table", action="store_true", help="only print the table of the finished runs")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    for name, default in {**peers.NUMBERS, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    options.backbone, options.learning_rate = "test_resnet", 0.05
    if options.one:
        torch.set_num_threads(options.threads)
        print(json.dumps(run(options)))
        return
    if not options.table:
        run_all(options)
    print(table(options.output))


def run_all(options) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    stored = options.output / "images.pt"
    if not stored.exists():
        peers.store(options, stored)
    for seed, arm in itertools.product(options.seeds, options.arms):
        result = options.output / f"{arm}-{seed}.json"
        if result.exists():
            continue
        numbers = [word for name in peers.NUMBERS for word in (f"--{name}", str(getattr(options, name)))]
        command = [sys.executable, __file__, str(stored), "--output", str(options.output), "--one", *numbers]
        command += ["--arms", arm, "--seeds", str(seed)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        result.write_text(done.stdout.splitlines()[-1] + "\n")
        print(arm, seed, result.read_text().strip(), flush=True)


def run(options) -> dict[str, float]:
    """One arm with one seed: seconds, and kNN accuracy in %."""
    parts = {name: CachedImages(*stored, None, name) for name, stored in torch.load(options.dataset).items()}
    train, test = parts["train"], parts["eval"]
    seed, (loop, views) = options.seeds[0], ARMS[options.arms[0]]
    torch.manual_seed(seed)
    begin, backbone = (in_lightly if loop == "lightly" else in_hf_essl)(options, train, seed, views)
    torch.manual_seed(seed)
    start = time.perf_counter()
    begin()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "kNN": peers.accuracy(backbone, train, test, options)}


def in_lightly(options, train, seed, views):
    """lightly's loop, on batches from its own transform or from our views."""
    if views in ("lightly", "crops"):
        transform = pil_transform(options, views)
        begin, backbone, _ = peers.lightly(options, train, seed, transform)
        return begin, backbone
    images = OurViews(train.images, view_arguments(options, views), seed)
    begin, backbone, _ = peers.lightly(options, train, seed, dataset=images, collate=images.collate)
    return begin, backbone


def pil_transform(options, views):
    """lightly's transform of a PIL image; with `crops`, its crop and flip are ours."""
    transform = peers.lightly_transform(options)
    if views == "lightly":
        return transform
    for view in transform.transforms:
        view.transform.transforms[:2] = [OurCrop(options)]  # instead of RandomResizedCrop and RandomHorizontalFlip
    return transform


class OurCrop:
    """Our box, resampling and flip of one PIL image."""

    def __init__(self, options):
        args = ViewArguments(resolution=options.resolution, jitter_p=0.0, grayscale_p=0.0, blur_p=(0.0,))
        self.views = Views(args, mean=(0, 0, 0), std=(1, 1, 1), seed=torch.initial_seed())

    def __call__(self, picture):
        images = pil_to_tensor(picture)[None]
        view = self.views.render(images, self.views.sample(images))[0]
        return peers.to_picture((view * 255).round().byte())


class OurViews(torch.utils.data.Dataset):
    """uint8 images whose batches are pairs of our views."""

    def __init__(self, images, args, seed):
        self.images, self.views = images, Views(args, IMAGENET_MEAN, IMAGENET_STD, seed)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]

    def collate(self, images):
        return self.views(torch.stack(images))


def view_arguments(options, order) -> ViewArguments:
    args = peers.our_recipe(options, options.seeds[0], "baseline").views
    args.jitter_order = order
    return args


def in_hf_essl(options, train, seed, views):
    """Our trainer, on its own views or on those of lightly's transform."""
    recipe = peers.our_recipe(options, seed, "baseline")
    recipe.training.output_dir = str(options.output / f"run-{options.arms[0]}-{seed}")
    recipe.views.jitter_order = "random" if views == "random" else "fixed"
    trainer = build_trainer(recipe, Images(train, None, None))
    if options.arms[0] != "hf_essl_other_pixel_statistics":
        peers.normalize_as_lightly(trainer)
    if views == "lightly":
        transform = peers.lightly_transform(options)

        def choose_pair(images, aspect=None):
            pictures = [peers.to_picture(image) for image in images]
            first, second = zip(*(transform(picture) for picture in pictures), strict=True)
            return LightlyPair(torch.stack(first), torch.stack(second))

        trainer.choose_pair = choose_pair
        trainer.render = lambda images, chosen: {"first": chosen.first, "second": chosen.second}
    return trainer.train, trainer.model.backbone


class LightlyPair:
    """Two rendered views, where the trainer expects the parameters of a pair."""

    def __init__(self, first, second):
        self.first, self.second = first, second

    def scalars(self):
        return {}


def table(folder: Path) -> str:
    """A Markdown table: kNN of each arm, and its difference from lightly over the same seeds."""
    found = {
        arm: {path.stem.removeprefix(f"{arm}-"): json.loads(path.read_text())["kNN"] for path in folder.glob(pattern)}
        for arm, pattern in ((arm, f"{arm}-[0-9]*.json") for arm in ARMS)
    }
    lines = ["| arm | loop | views | seeds | kNN (%) | against lightly | p |", "| --- " * 7 + "|"]
    reference = found["lightly"]
    for arm, runs in found.items():
        if not runs:
            continue
        shared = sorted(runs.keys() & reference.keys())
        difference, p = "", ""
        if arm != "lightly" and len(shared) > 1:
            pairs = [runs[seed] for seed in shared], [reference[seed] for seed in shared]
            gaps = [ours - theirs for ours, theirs in zip(*pairs, strict=True)]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5
            difference, p = f"{statistics.mean(gaps):+.1f} ± {error:.1f} (s.e.)", f"{ttest_rel(*pairs).pvalue:.2g}"
        values = peers.spread(list(runs.values()))
        lines.append(f"| {arm} | {' | '.join(ARMS[arm])} | {len(runs)} | {values} | {difference} | {p} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
