"""How often two forms of the selection choose the same pair: views rendered small, or at full size and then resized.

    python tests/benchmarks/selection_forms.py DATASET [--images 2000] [--resolution 224] [--train_steps 60]

DATASET is a recipe's `dataset`; its evaluation split is used. SimSiam scores the same views in both forms, first
untrained and then after `--train_steps` steps on random pairs at 96 px. The loss of a pair is that of the downsampled
views, as in the paper; the gap is the highest loss minus that of the pair chosen from small views. The same numbers
are given for views compared in bfloat16, if the device has it, and in float32, and for pairs scored by z and z, as in
Algorithm 1, and by p and z, as in SimSiam's loss.
"""

import argparse
import json
from dataclasses import replace

import torch

from hf_essl.config import DataArguments, ViewArguments
from hf_essl.data import load_images
from hf_essl.methods import SSLModel
from hf_essl.selection import HardAugment
from hf_essl.training.step import run_step
from hf_essl.views import Views


def compare(model, images, one: ViewArguments, other: ViewArguments, batch_size: int) -> dict[str, float]:
    """Agreement of two forms, and what the first loses by the scores of the other, over all images."""
    forms = [HardAugment(Views(args)) for args in (one, other)]  # from one seed: the same views
    same, gaps, spreads, correlations = [], [], [], []
    for batch in images.split(batch_size):
        ours, theirs = (form.compare(model, form.plan(batch)).scores for form in forms)
        pair, highest = ours.argmax(dim=1), theirs.amax(dim=1)
        same.append(pair == theirs.argmax(dim=1))
        gaps.append(highest - theirs.gather(1, pair[:, None]).squeeze(1))
        spreads.append(highest - theirs.mean(dim=1))
        correlations.append(torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1])
    same, gaps, spreads = (torch.cat(values) for values in (same, gaps, spreads))
    return {
        "same pair": same.float().mean().item(),
        "loss gap if they differ": gaps[~same].mean().item() if not same.all() else 0.0,
        "loss gap over all images": gaps.mean().item(),
        "gap of the hardest pair over a random one": spreads.mean().item(),
        "correlation of the scores": torch.stack(correlations).mean().item(),
    }


def train(model, images: torch.Tensor, steps: int, batch_size: int) -> float:
    """Trains on random pairs at 96 px; returns the last loss."""
    views = Views(ViewArguments(resolution=96))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 * batch_size / 256, momentum=0.9, weight_decay=5e-4)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        first, second = views(images[torch.randperm(len(images))[:batch_size]])
        loss = run_step(model, {"first": first, "second": second}, optimizer)
    return loss.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--backbone", default="resnet18")
    numbers = {"images": 2000, "image_size": 256, "resolution": 224, "train_steps": 60, "batch_size": 64, "threads": 2}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    data = {"dataset": options.dataset, "image_size": options.image_size, "max_eval_samples": options.images}
    images = load_images(DataArguments(**data, max_train_samples=1, cache="memory")).eval.images
    model = SSLModel.from_timm(options.backbone).train()
    args = ViewArguments(resolution=options.resolution, selection="hard", num_views=6)
    forms = {
        "direct and downsampled": (args, replace(args, selection_render="downsample")),
        "bf16 and float32": (replace(args, selection_precision="bf16"), args),
        "z and z, p and z": (replace(args, selection_score="projection_cosine"), args),
    }
    for steps in (0, options.train_steps):
        loss = train(model, images, steps, options.batch_size) if steps else None
        for name, (one, other) in forms.items():
            found = compare(model, images, one, other, options.batch_size)
            print(json.dumps({"trained steps": steps, "training loss": loss, "form": name, **found}), flush=True)


if __name__ == "__main__":
    main()
