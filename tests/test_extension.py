"""One file and one line add a method, a curve, a protocol or a built-in data set; everything then works with them.

The four files are written into a temporary package and imported, as a user's own package would be.
"""

import importlib
import json
import shutil
import sys

import pytest

from hf_essl import cli
from hf_essl.data.builtin import DATASETS
from hf_essl.evaluation.protocols import PROTOCOLS
from hf_essl.methods import METHODS
from hf_essl.schedules import CURVES

METHOD = """
import torch
from torch import nn
from hf_essl.methods import METHODS, SSLModel
from hf_essl.methods.base import negative_cosine
from hf_essl.methods.heads import mlp

class Plain(SSLModel):
    title = "Plain Siamese"
    description = "negative cosine without a predictor"
    citation = "@misc{plain2026, title = {Plain Siamese}}"
    small_args = {"width": 8}

    def __init__(self, backbone: nn.Module, width: int = 64):
        super().__init__(backbone)
        self.projector = mlp((self.num_features, width, width), last="plain_norm")

    def embed(self, view):
        z = self.projector(self.backbone(view))
        return z, z

    def loss(self, queries, keys):
        return (negative_cosine(queries[0], keys[1]) + negative_cosine(queries[1], keys[0])) / 2

METHODS["plain"] = Plain
"""
CURVE = """
from dataclasses import dataclass
from hf_essl.schedules import CURVES, Curve

@dataclass(frozen=True)
class Linear(Curve):
    title = "linear"
    description = "a straight line to 0"
    course = "a straight line from {peak:g} to 0"
    length: float

    @classmethod
    def from_args(cls, args, total_steps):
        return cls(total_steps)

    def lr(self, t):
        return 1 - t / self.length

CURVES["linear"] = Linear
"""
PROTOCOL = '''
from dataclasses import dataclass
from hf_essl.config.fields import Share, option
from hf_essl.evaluation.protocols import PROTOCOLS
from hf_essl.evaluation.task import Protocol

@dataclass(frozen=True)
class CentroidSettings:
    shrink: Share = option("Shrink the centroids towards the mean by this share.", 0.0)

def evaluate_centroids(task, settings):
    """Nearest class centroid."""
    features, labels = task.train_features()
    centers = features.new_zeros(int(labels.max()) + 1, features.shape[1]).index_add_(0, labels, features)
    centers = centers / labels.bincount().clamp(min=1)[:, None]
    centers = centers.lerp(features.mean(dim=0), settings.shrink)
    queries, truth = task.test_features()
    predicted = (queries[:, None] - centers).square().sum(dim=2).argmin(dim=1)
    return {"accuracy": 100 * (predicted == truth).float().mean().item()}

PROTOCOLS["centroids"] = Protocol("Centroid accuracy", "nearest class centroid", evaluate_centroids, CentroidSettings)
'''
DATASET = '''
import torch
from hf_essl.data import CachedImages
from hf_essl.data.builtin import DATASETS, BuiltInDataset

def load_stripes(split, image_size, device="cpu"):
    """Two classes: horizontal and vertical stripes, with noise."""
    count = 64 if split == "train" else 16
    labels = torch.arange(count) % 2
    wave = (torch.arange(image_size) % 8 < 4).float() * 200
    noise = torch.randint(0, 50, (count, 3, image_size, image_size), generator=torch.Generator().manual_seed(count))
    across, down = wave.expand(image_size, image_size), wave[:, None].expand(image_size, image_size)
    images = (torch.stack([across, down])[labels][:, None] + noise).to(torch.uint8)
    return CachedImages(images.to(device), labels, ["vertical", "horizontal"], "stripes")

DATASETS["stripes"] = BuiltInDataset(
    "two classes of stripes", train_images=64, terms="generated, no terms", caveat="Stripes are not photographs.",
    splits=("train", "validation"), load=load_stripes,
)
'''
RECIPE = """
backbone: test_resnet
method: plain
method_args: {width: 16}
dataset: stripes
image_size: 32
resolution: 32
lr_schedule: linear
learning_rate: 0.05
num_train_epochs: 2
per_device_train_batch_size: 16
save_strategy: steps
save_steps: 4
logging_steps: 1
knn_k: 5
measure_speedup: false
use_cpu: true
disable_tqdm: true
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with the four files, imported; the tables are as before afterwards."""
    saved = [(table, dict(table)) for table in (METHODS, CURVES, PROTOCOLS, DATASETS)]
    folder = tmp_path / "my_ssl"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in {"method": METHOD, "curve": CURVE, "protocol": PROTOCOL, "dataset": DATASET}.items():
        (folder / f"{name}.py").write_text(text)
        importlib.import_module(f"my_ssl.{name}")
    yield
    for table, entries in saved:
        table.clear()
        table.update(entries)
    for name in [name for name in sys.modules if name.startswith("my_ssl")]:
        del sys.modules[name]


def test_train_resume_evaluate_cost_and_card(package, tmp_path, capsys):
    recipe, run = tmp_path / "r.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    pretrain = ["pretrain", str(recipe), "--output_dir", str(run)]
    assert cli.main(pretrain) == 0
    shutil.rmtree(run / "checkpoint-8")
    assert cli.main([*pretrain, "--resume_from_checkpoint", "true"]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["method"], metrics["dataset"], metrics["steps"]) == ("plain", "stripes", 8)
    assert metrics["knn_accuracy"] is not None
    rates = [entry["learning_rate"] for entry in metrics["history"] if "loss" in entry]
    assert rates == pytest.approx([0.05 * (1 - step / 8) for step in range(8)])

    words = ["evaluate", str(run), "--dataset", "stripes", "--protocol", "centroids", "--shrink", "0.25"]
    capsys.readouterr()
    assert cli.main([*words, "--output", str(run / "centroids.json")]) == 0
    assert "Centroid accuracy" in capsys.readouterr().out
    facts = json.loads((run / "centroids.json").read_text())
    assert facts["shrink"] == 0.25 and 0 <= facts["accuracy"] <= 100
    assert cli.main([*words[:-1], "1.5"]) == 2
    assert "shrink is 1.5" in capsys.readouterr().err

    assert cli.main(["cost", str(recipe)]) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert row.startswith("| r | 2 | 8 |")

    assert cli.main(["card", str(run)]) == 0
    card = (run / "backbone" / "README.md").read_text()
    for text in (
        "Plain Siamese",
        "a straight line from 0.05 to 0",
        "generated, no terms",
        "Stripes are not photographs.",
        "Centroid accuracy",
        "@misc{plain2026",
    ):
        assert text in card, text


def test_the_help_lists_them(package, capsys):
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for entry in (
        "plain: negative cosine without a predictor",
        "linear: a straight line to 0",
        "stripes: two classes",
    ):
        assert entry in text
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "centroids" in text and "Shrink the centroids towards the mean by this share." in text
