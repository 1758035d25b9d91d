"""Every recipe of the repository: two steps on stand-in images, resumed, and its backbone loaded by timm."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from hf_essl.commands.evaluate import _parser as evaluate_parser
from hf_essl.config.files import baseline_of
from hf_essl.methods import METHODS, SSLModel
from hf_essl.pretrain import pretrain
from hf_essl.recipe import load_recipe
from hf_essl.sweep import load_sweep, run_sweep
from tests.helpers import quickstart_teacher

ROOT = Path(__file__).parents[2]
FOLDERS = ("accelerate", "ablations")  # launch configurations, and files of several runs each
SWEEPS = sorted((ROOT / "recipes" / "ablations").glob("*.yaml"))
PROOF = sorted(path for path in (ROOT / "recipes" / "proof").glob("*.yaml") if "\nrows:" in path.read_text())
RECIPES = [p for p in sorted((ROOT / "recipes").rglob("*.yaml")) if p.parent.name not in FOLDERS and p not in PROOF]
PAPER = ("simsiam", "byol", "simclr", "mocov2", "dino")  # the methods of Table 2
STAND_IN = """
    --dataset photo-patches --image_size 96 --max_train_samples 8 --max_eval_samples 4 --knn_k 3
    --total_batch_size none --per_device_train_batch_size 2 --max_steps 2 --save_strategy steps --save_steps 1
    --logging_steps 1 --measure_speedup false --use_cpu true --disable_tqdm true --dataloader_num_workers 0
""".split()


def stand_in(name):
    """The words that replace a backbone by a tiny one of its kind."""
    return ["--backbone", "test_vit" if "vit" in name else "test_resnet"]


FILES = (
    "metrics.json",
    "curves.png",
    "views.png",
    "recipe.yaml",
    "backbone/config.json",
    "backbone/model.safetensors",
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_recipe_is_parsed_and_built(path):
    """On the meta device: the network and heads that it names, without memory."""
    recipe = load_recipe(path, ["--use_cpu"])
    args = recipe.model
    with quickstart_teacher(), torch.device("meta"):
        model = SSLModel.from_timm(
            args.backbone, args.method, backbone_args=args.backbone_args, method_args=args.method_args
        )
    resolution = recipe.views.resolution
    outputs = model(*(torch.empty(2, 3, resolution, resolution, device="meta") for _ in range(2)))
    assert outputs["loss"].shape == (2,)


PAPERS = [path for path in RECIPES if path.parent.name in ("imagenet", "imagenette")]


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_the_header_names_the_evaluation_of_the_papers_figure(path):
    """Linear evaluation as cited for ImageNet, kNN for Imagenette, of the recipe's own run and data set."""
    text = path.read_text().replace(" \\\n#       ", " ")  # continued lines
    (line,) = re.findall(r"^#   hf-essl evaluate (.+)$", text, re.M)
    options = evaluate_parser().parse_args(line.split())
    recipe = load_recipe(path, ["--use_cpu"])
    assert (options.source, options.dataset) == (recipe.training.output_dir, recipe.data.dataset)
    assert options.dataset_config == recipe.data.dataset_config
    assert recipe.training.eval_crop_pct == 0.875 and options.crop_pct is None
    cited = ("linear", True) if path.parent.name == "imagenet" else ("knn", None)
    assert (options.protocol, options.augment) == cited


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_recipe_trains_resumes_and_exports(path, tmp_path):
    """Two steps of the recipe on a tiny network and stand-in images."""
    model = load_recipe(path, ["--use_cpu"]).model
    overrides = [*STAND_IN, "--output_dir", str(tmp_path), *stand_in(model.backbone)]
    heads = METHODS[model.method].small_args
    heads = heads | ({"queue_length": 4} if "queue_length" in heads else {})  # 8 images are fewer than 40 keys
    overrides += ["--method_args", json.dumps(heads)]
    recipe = load_recipe(path, overrides)
    metrics = pretrain(recipe)
    assert metrics["steps"] == 2 and metrics["knn_accuracy"] is not None
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    for name in FILES:
        assert (tmp_path / name).stat().st_size > 0, name
    for name in ("curves.png", "views.png"):
        with Image.open(tmp_path / name) as picture:
            picture.verify()

    weights = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    shutil.rmtree(tmp_path / "checkpoint-2")
    pretrain(load_recipe(path, [*overrides, "--resume_from_checkpoint", "true"]))
    resumed = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())

    backbone = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True).eval()
    trained = {name.removeprefix("backbone."): v for name, v in weights.items() if name.startswith("backbone.")}
    assert all(torch.equal(value, trained[name]) for name, value in backbone.state_dict().items())
    assert backbone(torch.zeros(1, 3, *[recipe.views.resolution] * 2)).shape == (1, backbone.num_features)

    again = load_recipe(tmp_path / "recipe.yaml")
    assert again.views == recipe.views and again.training.learning_rate == recipe.training.learning_rate


TWO_GROUPS = ["Model", "Baseline: Acc. (%)", "Baseline: Cost (pF)", "Efficient: Acc. (%)", "Efficient: Speedup"]
FIVE = ["petaFLOPs", "Speedup", "training (s)", "Speedup in wall-clock"]
PAPER_COLUMNS = {  # headings that the paper prints; the last three sweeps are no tables of its own
    "table1_backbones": TWO_GROUPS,
    "table2_methods": TWO_GROUPS,
    "table3_components": ["LR schedule", "Sup. Prog.", "Hard Aug.", "kNN-Acc. (%)", "Speedup"],
    "table4_schedules": ["Schedule", "Warm-Up", "Epochs", "Acc. (%)"],
    "table5_warmup": ["Warm Up", "Acc(%)"],
    "table6_min_resolution": ["Min. Res.", "Speed up", "Acc. (%)"],
    "table7_length": ["Epochs", "CA: kNN-Acc. (%)", "F1-CLR: kNN-Acc. (%)", "F1-CLR: Speedup at equal accuracy"],
    "table8_positives": ["# of Positives", "Accuracy(%)", "Overhead(%)"],
    "table9_extra_targets": ["Res.", "Selection", "Extra Target", "Acc(%)"],
    "table11_randaugment": ["Resolution", *(f"m={m}: Acc. (%)" for m in (3, 5, 7, 10, 15))],
    "table12_magnitude": ["m_min", "m_max", "Acc(%)"],
    "table3_quickstart": ["LR schedule", "Sup. Prog.", "Hard Aug.", "kNN-Acc. (%)", *FIVE],
    "one_cycle": ["Schedule", "num_train_epochs", "kNN-Acc. (%)", *FIVE],
    "progressive_without_warmup": ["Curriculum", "kNN-Acc. (%)", *FIVE],
}
# appendix B: LARS at 0.8, 90 epochs by default
LINEAR = {"augment": True, "epochs": None, "learning_rate": 0.8, "layers": None}
METRICS = {"table1_backbones": LINEAR, "table4_schedules": LINEAR, "table11_randaugment": "online_probe"}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_has_the_papers_columns_and_metric(path):
    sweep = load_sweep(path, ["--use_cpu"])
    header = sweep.table().splitlines()[0]
    assert [name.strip() for name in header.split("|")[1:-1] if name.strip() != "seeds"] == PAPER_COLUMNS[path.stem]
    expected = METRICS.get(path.stem, "knn")
    if expected is LINEAR:
        assert sweep.metric.name == "linear" and asdict(sweep.metric.settings) == LINEAR
    else:
        assert sweep.metric.name == expected


def test_the_list_of_the_papers_items_names_every_sweep():
    text = (
        (ROOT / "recipes" / "README.md").read_text().partition("### The paper, item by item")[2].partition("\n### ")[0]
    )
    named = set(re.findall(r"E/(\w+)\.yaml", text))
    assert named == {path.stem for path in SWEEPS} - {"table3_quickstart"}
    for kind, numbers in (("Table", range(1, 13)), ("Eq.", (4, 9, 10, 11)), ("Fig.", (1, 4))):
        assert all(f"| {kind} {number} |" in text for number in numbers), kind


def test_every_efficient_recipe_has_a_counterpart_of_the_same_network_and_images():
    counterparts = [(path, baseline) for path in RECIPES if (baseline := baseline_of(path))]
    assert len(counterparts) >= 13
    assert {path for path in RECIPES if path.stem.endswith("_efficient")} <= {path for path, _ in counterparts}
    for path, baseline in counterparts:
        ours, plain = load_recipe(path, ["--use_cpu"]), load_recipe(baseline, ["--use_cpu"])
        assert (ours.model, ours.data) == (plain.model, plain.data), path
        assert ours.views.resolution == plain.views.resolution
        assert ours.training.per_device_train_batch_size == plain.training.per_device_train_batch_size
        assert (plain.views.selection, plain.views.resolution_schedule) == ("none", "constant")
        assert plain.training.lr_schedule in ("cosine", "cosine_warmup"), "cosine_warmup for AdamW, as published"


@pytest.mark.slow
@pytest.mark.parametrize("path", [*SWEEPS, *PROOF], ids=lambda path: path.stem)
def test_a_cell_of_each_sweep_trains_and_resumes(path, tmp_path):
    """All cells are checked when the file is read; the last one runs, on a small network, and gets its metric."""
    overrides = [*STAND_IN, "--output_dir", str(tmp_path)]
    overrides += stand_in(load_sweep(path, overrides).cells[0].recipe.model.backbone)
    sweep = load_sweep(path, overrides)
    cells = sweep.cells
    assert len(cells) > 1 and len({cell.name for cell in cells}) == len(cells)
    cell = cells[-1]
    run_sweep(replace(sweep, cells=[cell]), pretrain)
    finished = json.loads((cell.folder / "metrics.json").read_text())
    assert finished["steps"] == 2
    (cell.folder / "metrics.json").unlink()
    shutil.rmtree(cell.folder / "checkpoint-2")
    again = load_sweep(path, overrides)
    run_sweep(replace(again, cells=again.cells[-1:]), pretrain)
    assert json.loads((cell.folder / "metrics.json").read_text())["knn_accuracy"] == finished["knn_accuracy"]
    assert sweep.finished(cell)["accuracy"] is not None


TABLE_10 = {
    "baseline": {"num_train_epochs": 800, "learning_rate": 0.05, "lr_schedule": "cosine", "momentum": 0.9},
    "efficient": {
        "num_train_epochs": 480,
        "learning_rate": 0.1,
        "lr_schedule": "f1_clr",
        "warmup_epochs": 80,
        "min_momentum": 0.85,
        "max_momentum": 0.95,
        "min_magnitude": 4,
        "max_magnitude": 6,
        "min_resolution": 96,
        "num_views": 6,
        "selection_resolution": 64,
    },
}


@pytest.mark.parametrize("kind", TABLE_10)
@pytest.mark.parametrize("method", PAPER)
def test_imagenette_recipes_hold_table_10(method, kind):
    """Optimizer and augmentations are the same for all methods (Sec. 4.2)."""
    recipe = load_recipe(ROOT / "recipes" / "imagenette" / f"{method}_resnet50_{kind}.yaml", ["--use_cpu"])
    assert (recipe.model.method, recipe.model.backbone) == (method, "resnet50")
    expected = TABLE_10[kind] | {"per_device_train_batch_size": 128, "weight_decay": 5e-4, "resolution": 224}
    for key, value in expected.items():
        group = recipe.views if hasattr(recipe.views, key) else recipe.training
        assert getattr(group, key) == value, key
    if method == "mocov2":
        assert recipe.model.method_args["queue_length"] < 9469 - 128


def documented_overrides():
    """Words by method, from the table of recipes/README.md."""
    text = (ROOT / "recipes" / "README.md").read_text().partition("### Methods as published")[2].partition("## ")[0]
    return {method: words.split() for method, words in re.findall(r"^\| `(\w+)` \| `(.*)` \|$", text, re.MULTILINE)}


@pytest.mark.parametrize("method", PAPER)
def test_the_documented_overrides_select_what_a_method_publishes(method):
    """Base learning rates per 256 images, weight decay, and what it excludes, of the papers and official code."""
    path = ROOT / "recipes" / "imagenette" / f"{method}_resnet50_baseline.yaml"
    training = load_recipe(path, [*documented_overrides()[method], "--use_cpu"]).training
    published = {
        "simsiam": ("sgd", 0.05, 1e-4, True),
        "mocov2": ("sgd", 0.03, 1e-4, True),
        "simclr": ("lars", 0.3, 1e-6, False),
        "byol": ("lars", 0.2, 1.5e-6, False),
        "dino": ("sgd", 0.03, 1e-4, False),
    }
    found = (training.optim, 2 * training.learning_rate, training.weight_decay, training.decay_norm_and_bias)
    assert found == published[method]


@pytest.mark.parametrize("method", METHODS)
def test_both_quickstarts_of_a_method_train_the_same_model(method):
    """A baseline is one only if the network, its heads, the data and the epochs are the same."""
    stem = "quickstart" if method == "simsiam" else f"quickstart/{method}"
    paths = (ROOT / "recipes" / f"{stem}{suffix}.yaml" for suffix in ("", "_baseline"))
    efficient, baseline = (load_recipe(path, ["--use_cpu"]) for path in paths)
    assert efficient.model == baseline.model and efficient.model.method == method
    assert efficient.data == baseline.data
    for key in ("num_train_epochs", "learning_rate", "weight_decay", "per_device_train_batch_size", "seed"):
        assert getattr(efficient.training, key) == getattr(baseline.training, key), key
    assert (baseline.views.selection, baseline.training.lr_schedule) == ("none", "cosine")
    assert (efficient.views.selection, efficient.training.lr_schedule) == ("hard", "f1_clr")


def test_every_recipe_is_a_mapping():
    for path in RECIPES + SWEEPS:
        assert isinstance(yaml.safe_load(path.read_text()), dict)
