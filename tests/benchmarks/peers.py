"""SimSiam in lightly and in hf_essl on the same images: wall-clock time and kNN accuracy.

    python tests/benchmarks/peers.py DATASET [--images 4000] [--epochs 20] [--seeds 0 1 2] [--backbone test_resnet]

DATASET is a recipe's `dataset`, with an evaluation split. Each seed has these runs, one after the other, each in its
own process on the same cores:

- lightly: its transform, heads and loss (`pip install lightly`) in the loop of its documentation; by default without
  workers, its fastest setting on two cores;
- baseline: hf_essl with the same hyperparameters and the same augmentations;
- efficient: hf_essl with F1-CLR, Super Progressive Learning and Hard Augment, one run for each length in
  `--efficient_epochs`. Pairs are compared in bfloat16 if the CPU supports it.

All start from decoded uint8 images of `--image_size` in memory. Seconds are those of training only; the kNN accuracy
is that of hf_essl on the whole evaluation split, at the training resolution.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from scipy.stats import ttest_1samp

from hf_essl.config import DataArguments
from hf_essl.data import CachedImages, Images, load_images
from hf_essl.evaluation import extract_features, knn_accuracy
from hf_essl.pretrain import build_trainer
from hf_essl.recipe import Recipe, load_recipe
from hf_essl.views.params import REFERENCE_SIZE
from hf_essl.views.views import IMAGENET_MEAN, IMAGENET_STD

ARMS = ("lightly", "baseline", "efficient")
RECIPES = Path(__file__).parents[2] / "recipes" / "imagenette"
DIM, HIDDEN = 512, 128
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
NUMBERS = {
    "images": 4000, "epochs": 20, "batch_size": 64, "resolution": 64, "min_resolution": 32,
    "resolution_step": 16, "selection_resolution": 32, "image_size": 96, "workers": 0, "threads": 2,
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backbone", default="test_resnet")
    parser.add_argument("--learning_rate", type=float, default=0.05)
    parser.add_argument("--selection_precision", choices=["training", "bf16"], default="bf16")
    parser.add_argument("--efficient_epochs", type=int, nargs="+", default=[8, 12])
    for name, default in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.arm:
        torch.set_num_threads(options.threads)
        print(json.dumps(run(options)))
        return
    lengths = {"lightly": [options.epochs], "baseline": [options.epochs], "efficient": options.efficient_epochs}
    found = {(arm, epochs): [] for arm in ARMS for epochs in lengths[arm]}
    with tempfile.TemporaryDirectory() as folder:
        stored = store(options, Path(folder) / "images.pt")
        command = [sys.executable, __file__, str(stored)]
        for name in ("backbone", "learning_rate", "selection_precision", *NUMBERS):
            command += [f"--{name}", str(getattr(options, name))]
        for seed, (arm, epochs) in itertools.product(options.seeds, found):
            arguments = [*command, "--arm", arm, "--epochs", str(epochs), "--seeds", str(seed)]
            done = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
            one = json.loads(done.stdout.splitlines()[-1])
            found[arm, epochs].append(one)
            print(json.dumps({"arm": arm, "epochs": epochs, "seed": seed, **one}), flush=True)
    print(table(found))


def store(options, path: Path) -> Path:
    data = DataArguments(
        dataset=options.dataset, image_size=options.image_size, max_train_samples=options.images, cache="memory"
    )
    images = load_images(data)
    torch.save({name: (part.images, part.labels) for name, part in vars(images).items() if name != "bank"}, path)
    return path


def run(options) -> dict[str, float]:
    """Trains one arm with one seed: seconds, images/s, and kNN accuracy before and after, in %."""
    parts = {name: CachedImages(*stored, None, name) for name, stored in torch.load(options.dataset).items()}
    train, test = parts["train"], parts["eval"]
    seed = options.seeds[0]
    torch.manual_seed(seed)
    begin, backbone, images = (lightly if options.arm == "lightly" else ours)(options, train, seed)
    before = accuracy(backbone, train, test, options)
    torch.manual_seed(seed)
    seconds = begin()
    after = accuracy(backbone, train, test, options)
    return {"seconds": seconds, "images_per_second": images / seconds, "random": before, "kNN": after}


def accuracy(backbone, train, test, options) -> float:
    settings = {"resolution": options.resolution, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop_pct": 1.0}
    bank, queries = (extract_features(backbone, part, **settings) for part in (train, test))
    return knn_accuracy(*bank, *queries)


def to_picture(image) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


class Pictures(torch.utils.data.Dataset):
    """PIL images in memory, through a transform."""

    def __init__(self, images, transform):
        self.pictures = [to_picture(image) for image in images]
        self.transform = transform

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.transform(self.pictures[index])


def lightly_transform(options):
    """lightly's transform of a PIL image into two views."""
    from lightly.transforms import SimSiamTransform

    scale = options.resolution / REFERENCE_SIZE  # hf_essl's sigma is in pixels of a 224 px view
    return SimSiamTransform(input_size=options.resolution, sigmas=(0.1 * scale, 2 * scale))


def lightly(options, train, seed, transform=None, dataset=None, collate=None):
    """The loop of lightly's documentation, with cosine annealing.

    `dataset` and `collate` replace its transform by other pairs of views.
    """
    import timm
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

    dataset = dataset or Pictures(train.images, transform or lightly_transform(options))
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=options.batch_size, shuffle=True, drop_last=True, collate_fn=collate,
        num_workers=options.workers, persistent_workers=options.workers > 0,
    )  # fmt: skip
    backbone = timm.create_model(options.backbone, num_classes=0).train()
    width = backbone.num_features
    projector, predictor = SimSiamProjectionHead(width, width, DIM), SimSiamPredictionHead(DIM, HIDDEN, DIM)
    parameters = [p for module in (backbone, projector, predictor) for p in module.parameters()]
    optimizer = torch.optim.SGD(parameters, options.learning_rate, MOMENTUM, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * len(loader))
    criterion = NegativeCosineSimilarity()

    def begin() -> float:
        start = time.perf_counter()
        backbone.train()
        for _ in range(options.epochs):
            for first, second in loader:
                z0, z1 = (projector(backbone(view)) for view in (first, second))
                p0, p1 = predictor(z0), predictor(z1)
                loss = 0.5 * (criterion(z0.detach(), p1) + criterion(z1.detach(), p0))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return time.perf_counter() - start

    return begin, backbone, options.epochs * len(loader) * options.batch_size


def ours(options, train, seed):
    recipe = our_recipe(options, seed, options.arm)
    trainer = build_trainer(recipe, Images(train, None, None))
    normalize_as_lightly(trainer)

    def begin() -> float:
        trainer.train()
        return trainer.clock.seconds

    return begin, trainer.model.backbone, trainer.planned_steps() * options.batch_size


def normalize_as_lightly(trainer) -> None:
    """Trains with ImageNet's pixel statistics, as lightly does and as `accuracy` evaluates.

    A recipe uses those of the network, which are 0.5 for timm's `test_resnet`; until November 2026 this benchmark
    trained with them and evaluated with ImageNet's, which cost hf_essl two to three points.
    """
    trainer.model.pixel_mean, trainer.model.pixel_std = IMAGENET_MEAN, IMAGENET_STD
    trainer.views.mean, trainer.views.std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)


def our_recipe(options, seed, arm) -> Recipe:
    shared = ["backbone", "image_size", "resolution", "learning_rate"]
    efficient = ["min_resolution", "resolution_step", "selection_resolution"] if arm == "efficient" else []
    fields = {name: getattr(options, name) for name in shared + efficient}
    fields |= {
        "method_args": json.dumps({"projector_dim": DIM, "predictor_hidden": HIDDEN}),
        "total_batch_size": "none",
        "per_device_train_batch_size": options.batch_size,
        "num_train_epochs": options.epochs,
        "momentum": MOMENTUM,
        "weight_decay": WEIGHT_DECAY,
        "fix_predictor_lr": "false",
        "seed": seed,
        "output_dir": Path(options.dataset).parent / f"{arm}-{seed}",
        "save_strategy": "no",
        "knn_every_epochs": 0,
        "disable_tqdm": "true",
    }
    if arm == "efficient":  # proportions as in the paper: 80 of 480 epochs, twice the learning rate
        fields |= {"warmup_epochs": options.epochs / 6, "learning_rate": 2 * options.learning_rate}
        fields["selection_precision"] = options.selection_precision
    words = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    return load_recipe(RECIPES / f"simsiam_resnet50_{arm}.yaml", words)


def table(found) -> str:
    """A Markdown table of means ± standard deviations over the seeds; ratios and differences are per seed."""
    header = (
        "| run | epochs | images/s | training (s) | against lightly | random init, kNN (%) | kNN (%) | difference |"
    )
    lines = [header, "| --- " * 8 + "|"]
    reference = next(runs for (arm, _), runs in found.items() if arm == "lightly")
    for (arm, epochs), runs in found.items():
        columns = [[one[name] for one in runs] for name in ("images_per_second", "seconds", "random", "kNN")]
        pairs = list(zip(runs, reference, strict=True))
        ratios = [one["seconds"] / other["seconds"] for one, other in pairs]
        rates, seconds, random, knn = (spread(column) for column in columns)
        words = "" if arm == "lightly" else difference([one["kNN"] - other["kNN"] for one, other in pairs])
        lines.append(f"| {arm} | {epochs} | {rates} | {seconds} | {spread(ratios, 2)} | {random} | {knn} | {words} |")
    return "\n".join(lines)


def difference(values) -> str:
    """Mean ± standard error of paired differences, and p of a paired t test."""
    if len(values) < 2:
        return f"{values[0]:+.1f}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):+.1f} ± {error:.1f} (p = {ttest_1samp(values, 0).pvalue:.2g})"


def spread(values, digits=1) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


if __name__ == "__main__":
    main()
