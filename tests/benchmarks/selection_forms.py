"""How often both forms of the selection choose the same pair: views rendered small, or in full and then resized.

    python tests/benchmarks/selection_forms.py IMAGES [--images 2000] [--resolution 224] [--train_steps 60]

IMAGES is what a recipe names as `dataset`, of which the evaluation split is used, evenly spaced. SimSiam scores the
same views in both forms, first untrained and then after `--train_steps` steps on random pairs of the images at 96 px.
The loss of a pair is that of the views in full, downsampled, which the paper's form maximises; the gap is its maximum
less the loss of the pair that the directly rendered views chose. The same is said of views that are compared in
bfloat16, where the device has it, against float32.
"""

import argparse
import json
from dataclasses import replace

import torch

from hf_essl.config import DataArguments, ViewArguments
from hf_essl.data import load_images
from hf_essl.methods import SSLModel
from hf_essl.selection import HardAugment
from hf_essl.views import Views


@torch.no_grad()
def compare(
    model, images: torch.Tensor, one: ViewArguments, other: ViewArguments, batch_size: int
) -> dict[str, float]:
    """Agreement of two forms, and what the first loses by the scores of the other, over all images."""
    forms = [HardAugment(Views(args)) for args in (one, other)]
    same, gaps, spreads, correlations = [], [], [], []
    for batch in images.split(batch_size):
        candidates = forms[0].views.sample_all(batch, forms[0].kinds)
        scores = [form.score(model, *form.embed(model, form.small_views(batch, candidates))) for form in forms]
        pairs = [score.argmax(dim=1) for score in scores]
        reached = scores[1].gather(1, pairs[0][:, None]).squeeze(1)
        same.append(pairs[0] == pairs[1])
        gaps.append(scores[1].amax(dim=1) - reached)
        spreads.append(scores[1].amax(dim=1) - scores[1].mean(dim=1))
        correlations.append(torch.corrcoef(torch.stack([score.flatten() for score in scores]))[0, 1])
    same, gaps, spreads = (torch.cat(values) for values in (same, gaps, spreads))
    return {
        "same pair": same.float().mean().item(),
        "loss gap where they differ": gaps[~same].mean().item() if not same.all() else 0.0,
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
        loss = model(first, second)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--backbone", default="resnet18")
    defaults = {
        "images": 2000,
        "image_size": 256,
        "resolution": 224,
        "train_steps": 60,
        "batch_size": 64,
        "threads": 2,
    }
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    data = DataArguments(
        dataset=options.dataset, image_size=options.image_size, max_train_samples=1, max_eval_samples=options.images,
        cache="memory",
    )  # fmt: skip
    images = load_images(data).eval.images
    model = SSLModel.from_timm(options.backbone).train()
    args = ViewArguments(resolution=options.resolution, selection="hard", num_views=6)
    steps = 0
    for more in (0, options.train_steps):
        loss = train(model, images, more, options.batch_size) if more else None
        steps += more
        for name, one, other in (
            ("direct against downsample", args, replace(args, selection_render="downsample")),
            ("bf16 against float32", replace(args, selection_precision="bf16"), args),
        ):
            found = compare(model, images, one, other, options.batch_size)
            print(json.dumps({"trained steps": steps, "training loss": loss, "form": name, **found}), flush=True)


if __name__ == "__main__":
    main()
