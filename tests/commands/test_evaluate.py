"""`hf-essl evaluate` as a user runs it: every protocol, what it prints and writes, and mistakes in its input."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import save_file

from hf_essl import cli, export_backbone
from hf_essl.config import DataArguments
from hf_essl.config.fields import Positive, option
from hf_essl.config.training import KNN_K, KNN_TEMPERATURE
from hf_essl.data.photo_patches import photo_patches
from hf_essl.evaluation import extract_features, knn_accuracy
from hf_essl.evaluation.backbone import arguments_of_run, load_backbone
from hf_essl.evaluation.evaluate_backbone import evaluate_backbone, sample_indices
from hf_essl.evaluation.protocols import PROTOCOLS
from hf_essl.evaluation.task import Protocol
from hf_essl.methods import METHODS, SSLModel

ROOT = Path(__file__).parents[2]
SMALL = "--dataset photo-patches --max_train_samples 160 --max_eval_samples 64".split()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """The folder of a finished BYOL run, with untrained weights."""
    folder = tmp_path_factory.mktemp("runs") / "byol"
    torch.manual_seed(0)
    model = SSLModel.from_timm("test_resnet", "byol", method_args=METHODS["byol"].small_args)
    model.train()(torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32))
    checkpoint = folder / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, checkpoint / "model.safetensors"
    )
    (checkpoint / "trainer_state.json").write_text('{"global_step": 3, "max_steps": 3, "log_history": []}')
    for name in ("optimizer.pt", "scheduler.pt"):
        (checkpoint / name).write_bytes(b"a pickle that nothing may open")
    (folder / "recipe.yaml").write_text("backbone: test_resnet\nmethod: byol\nresolution: 32\nimage_size: 48\n")
    export_backbone(model, folder / "backbone", input_size=32)
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)  # otherwise the mixed precision of another test would stay


def evaluate(*words):
    return cli.main(["evaluate", *map(str, words)])


def by_hand(model, resolution=32, image_size=48, k=KNN_K, temperature=KNN_TEMPERATURE, crop_pct=1.0):
    """kNN accuracy without the command: the same 160 random patches, and every 16th evaluation patch."""
    options = {"resolution": resolution, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": crop_pct}
    train, test = photo_patches("train", image_size), photo_patches("validation", image_size)
    bank, labels = extract_features(model, train, indices=sample_indices(len(train), 160), **options)
    queries, truth = extract_features(model, test.take(range(0, 1024, 16)), **options)
    return knn_accuracy(bank, labels, queries, truth, k, temperature)


@pytest.fixture(scope="module")
def backbones(run_folder):
    return {which: load_backbone(run_folder, which=which).backbone for which in ("student", "teacher")}


def test_knn_of_student_and_teacher(run_folder, backbones, tmp_path, capsys):
    for which, backbone in backbones.items():
        output = tmp_path / "new" / f"{which}.json"
        assert evaluate(run_folder, *SMALL, "--which", which, "--output", output) == 0
        out, err = capsys.readouterr()
        facts = json.loads(output.read_text())
        expected = by_hand(backbone)
        assert facts["accuracy"] == pytest.approx(expected) and expected > 100 / 16
        assert out.splitlines() == [
            f"kNN accuracy {expected:.2f} % (k {KNN_K}, temperature {KNN_TEMPERATURE})",
            f"wrote {output}",
        ]
        assert (
            f"({which}) at 32 px, whole center square, on photo-patches: 160 training images, 64 to evaluate on" in err
        )
        assert facts["weights"] == str(run_folder / "checkpoint-3") and facts["image_size"] == 48
        assert (facts["which"], facts["protocol"]) == (which, "knn")
        assert (facts["k"], facts["temperature"]) == (KNN_K, KNN_TEMPERATURE)
        assert (facts["train_images"], facts["eval_images"], facts["resolution"]) == (160, 64, 32)
        assert [path.name for path in output.parent.iterdir() if path.name.startswith(".")] == []


def test_k_temperature_resolution_crop_and_image_size(run_folder, backbones, capsys):
    words = "--k 3 --temperature 0.5 --resolution 40 --image_size 96 --crop_pct 0.6".split()
    assert evaluate(run_folder / "backbone", *SMALL, *words) == 0
    expected = by_hand(backbones["student"], resolution=40, image_size=96, k=3, temperature=0.5, crop_pct=0.6)
    out, err = capsys.readouterr()
    assert out == f"kNN accuracy {expected:.2f} % (k 3, temperature 0.5)\n"
    assert "at 40 px, center crop of 0.6 of the short side, on" in err


def test_the_crop_is_the_one_the_backbone_was_made_with(run_folder, backbones, tmp_path, capsys):
    """That of its run, or of its exported configuration; an older run evaluated the whole center square."""
    backbone = shutil.copytree(run_folder / "backbone", tmp_path / "alone")
    old = json.loads((backbone / "config.json").read_text())
    old["pretrained_cfg"] |= {"crop_pct": 1.0, "interpolation": "bicubic"}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(json.dumps(old))
    shutil.copy(backbone / "model.safetensors", tmp_path / "old")
    run = tmp_path / "run"
    shutil.copytree(run_folder / "checkpoint-3", run / "checkpoint-3")
    recipe = (run_folder / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe + "eval_crop_pct: 0.75\n")
    crops = [load_backbone(source).crop_pct for source in (run_folder, run, tmp_path / "old", backbone)]
    assert crops == [1.0, 0.75, 1.0, 0.875]
    for source, crop_pct, image_size, noted in ((run, 0.75, 48, False), (tmp_path / "old", 1.0, 64, True)):
        assert evaluate(source, *SMALL, "--output", tmp_path / "facts.json") == 0
        facts = json.loads((tmp_path / "facts.json").read_text())
        assert (facts["crop_pct"], facts["image_size"]) == (crop_pct, image_size)
        assert ("this is the crop that it was made with" in capsys.readouterr().err) == noted
        expected = by_hand(backbones["student"], image_size=image_size, crop_pct=crop_pct)
        assert facts["accuracy"] == pytest.approx(expected)


def test_linear_probe_cached_and_augmented(run_folder, tmp_path, capsys):
    output = tmp_path / "linear.json"
    assert evaluate(run_folder, *SMALL, "--protocol", "linear", "--output", output) == 0
    facts = json.loads(output.read_text())
    assert facts["accuracy"] > 3 * 100 / 16 and facts["epochs"] == 3_000 and facts["augment"] is False
    assert facts["title"] == "Linear probe accuracy, cached features" and facts["steps"] == 3_000
    assert f"{facts['title']} {facts['accuracy']:.2f} % (epochs 3000" in capsys.readouterr().out
    words = ["--protocol", "linear", "--augment", "--epochs", "2", "--learning_rate", "0.4"]
    assert evaluate(run_folder, *SMALL, *words, "--output", output) == 0
    out, err = capsys.readouterr()
    facts = json.loads(output.read_text())
    assert (facts["epochs"], facts["learning_rate"], facts["augment"], facts["steps"]) == (2, 0.4, True, 2)
    assert facts["title"] == "Linear accuracy, SimSiam's protocol"
    assert f"{facts['title']} {facts['accuracy']:.2f} % (epochs 2, learning_rate 0.4, augment True)" in out
    assert "epoch 2/2  loss" in err and "2 steps are few" in err


def test_finetune(run_folder, tmp_path, capsys):
    output = tmp_path / "finetune.json"
    words = "--protocol finetune --epochs 2 --batch_size 32 --optimizer adamw".split()
    assert evaluate(run_folder, *SMALL, *words, "--output", output) == 0
    out, err = capsys.readouterr()
    facts = json.loads(output.read_text())
    assert "Fine-tuned accuracy" in out and "epoch 2/2  loss" in err
    assert (facts["epochs"], facts["learning_rate"], facts["optimizer"]) == (2, 0.001, "adamw")
    assert 0 <= facts["accuracy"] <= 100


def test_sampled_images_are_of_all_classes():
    labels = photo_patches("train", 8).labels  # they cycle through 16 classes: every 16th image has one class
    sampled = sample_indices(4096, 256)
    assert len(set(sampled)) == 256 and sampled == sorted(sampled) and len(set(labels[sampled].tolist())) == 16
    assert sample_indices(4096, 256) == sampled and sample_indices(4096, 256, seed=1) != sampled
    assert [sample_indices(10, count) for count in (None, 10, 11)] == [None, None, None]
    labeled = list(range(0, 4096, 2))
    some = sample_indices(4096, 256, among=labeled)
    assert len(set(some)) == 256 and some == sorted(some) and set(some) < set(labeled)
    assert sample_indices(4096, None, among=labeled) == sample_indices(4096, 2048, among=labeled) == labeled


@pytest.mark.parametrize("protocol", ["knn", "linear", "finetune"])
def test_images_without_a_label_are_left_out(run_folder, tmp_path, protocol):
    """A third of the images has no label; sub-folders are the classes."""
    whole = photo_patches("train", 32)
    for index in range(48):
        folder = tmp_path / "set" / split_of(index) / ("" if index % 3 == 0 else f"class {index % 2}")
        folder.mkdir(parents=True, exist_ok=True)
        image = whole[index]["image"].permute(1, 2, 0).numpy()
        Image.fromarray(image).save(folder / f"{index}.png")
    options = {"epochs": 1} if protocol != "knn" else {"k": 3}
    data = DataArguments(dataset=str(tmp_path / "set"), max_train_samples=20)
    facts = evaluate_backbone(str(run_folder), data, protocol, options, resolution=32, report=lambda line: None)
    assert (facts["train_images"], facts["eval_images"]) == (20, 8)


def split_of(index):
    return "train" if index < 36 else "val"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "kn"], "invalid choice: 'kn' (choose from"),
        (["--which", "ema"], "invalid choice: 'ema' (choose from"),
        (["--temprature", "1"], "unrecognized arguments: --temprature 1; `hf-essl evaluate --help` explains"),
        (["--k", "two"], "argument --k: invalid int value: 'two'"),
        (["--k", "161"], "k is 161 with 160 features in the bank; lower k or enlarge the bank"),
        (["--k", "0"], "k is 0; it should be greater than or equal to 1 (default: 20)"),
        (["--temperature", "0"], "temperature is 0.0; it should be greater than 0 (default: 0.07)"),
        (["--protocol", "linear", "--k", "5"], "k is a setting of knn, not of linear, which accepts epochs, learning"),
        (["--epochs", "5"], "epochs is a setting of linear and finetune, not of knn, which accepts k, temperature"),
        (["--protocol", "linear", "--epochs", "0"], "epochs is 0; it should be greater than or equal to 1"),
        (["--protocol", "finetune", "--epochs", "-1"], "epochs is -1; it should be greater than or equal to 1"),
        (["--protocol", "finetune", "--optimizer", "lion"], "optimizer is 'lion'; it should be 'sgd' or 'adamw'"),
        (["--resolution", "0"], "resolution is 0; it should be greater than or equal to 1"),
        (["--resolution", "-4"], "resolution is -4; it should be greater than or equal to 1"),
        (["--crop_pct", "0"], "crop_pct is 0.0; it should be greater than 0"),
        (["--crop_pct", "1.2"], "crop_pct is 1.2; it should be less than or equal to 1"),
        (["--image_size", "-4"], "image_size is -4; it should be greater than or equal to 1"),
        (["--image_size", "0"], "image_size is 0; it should be greater than or equal to 1"),
        (["--batch_size", "0"], "batch_size is 0; it is a number of images"),
        (["--max_train_samples", "0"], "max_train_samples is 0; it should be greater than or equal to 1"),
        (["--max_eval_samples", "0"], "max_eval_samples is 0; it should be greater than or equal to 1"),
        (["--cache", "disc"], "cache is 'disc'; it should be 'none', 'memory', 'disk' or 'device' (default: 'none')"),
        (["--eval_split", "test"], "eval_split is test; the splits of photo-patches are train, validation"),
        (["--dataset", "./no/such"], "dataset is ./no/such, which does not exist"),
    ],
)
def test_a_mistake_is_one_line(words, message, run_folder, capsys):
    assert evaluate(run_folder, *SMALL, *words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hf-essl: error: ") and message in error


def test_a_mistake_in_the_source_is_one_line(run_folder, tmp_path, capsys):
    for source, words, message in (
        ("resnet50", [], "source is resnet50, which does not exist; give the folder of a run"),
        (tmp_path, [], "contains no model.safetensors, no complete checkpoint and no backbone"),
        (run_folder / "backbone", ["--which", "teacher"], "is an exported backbone, the student; give a checkpoint"),
        (
            run_folder / "checkpoint-3",
            ["--backbone", "resnet51"],
            "backbone is 'resnet51', which is not a timm model; did you mean",
        ),
    ):
        assert evaluate(source, *SMALL, *words) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1 and message in error[0]
    assert evaluate(run_folder) == 2
    assert "the following arguments are required: --dataset" in capsys.readouterr().err


def test_images_without_labels_or_evaluation_split(run_folder, tmp_path, capsys):
    from PIL import Image

    for index in range(8):
        for folder, name in (("heap", ""), ("classes", "ab"[index % 2])):
            path = tmp_path / folder / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (255 * (index % 2), 30 * index, 0)).save(path)
    assert evaluate(run_folder, "--dataset", tmp_path / "heap") == 2
    assert "whose training images have no labels; set --label_column" in capsys.readouterr().err
    assert evaluate(run_folder, "--dataset", tmp_path / "classes") == 2
    assert "which has no labeled evaluation images; name their split with --eval_split" in capsys.readouterr().err
    assert evaluate(run_folder, "--dataset", tmp_path / "classes", "--eval_holdout", "0.25", "--k", "1") == 0
    assert "kNN accuracy" in capsys.readouterr().out


def test_the_runs_own_data_set_is_split_as_in_the_run(tmp_path):
    lines = "dataset: photos/mine\neval_holdout: 0.2\nlabel_column: kind\ntrain_split: all\nimage_column: image\n"
    (tmp_path / "recipe.yaml").write_text(lines)
    own = {"eval_holdout": 0.2, "label_column": "kind", "train_split": "all"}
    assert arguments_of_run(str(tmp_path), {"dataset": "/elsewhere/mine"}) == own
    label = {"dataset": "mine", "label_column": "label"}
    assert arguments_of_run(str(tmp_path), label) == {"eval_holdout": 0.2, "train_split": "all"}, "what is given wins"
    split = {"dataset": "mine", "eval_split": "test"}
    assert arguments_of_run(str(tmp_path), split) == {"label_column": "kind", "train_split": "all"}, "no hold-out then"
    assert arguments_of_run(str(tmp_path), {"dataset": "others"}) == {}


@pytest.mark.slow
def test_two_processes_print_the_accuracy_of_one_once(run_folder, backbones, tmp_path):
    words = ["evaluate", str(run_folder), *SMALL, "--output", str(tmp_path / "two.json")]
    torchrun = "-m torch.distributed.run --standalone --nproc_per_node 2 -m hf_essl.cli".split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *torchrun, *words], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    expected = by_hand(backbones["student"])
    assert done.stdout.count(f"kNN accuracy {expected:.2f} %") == 1
    facts = json.loads((tmp_path / "two.json").read_text())
    assert facts["accuracy"] == pytest.approx(expected) and facts["processes"] == 2


def test_help_is_derived_from_the_fields(capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate("--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("--protocol {knn,linear,finetune}", "--which {student,teacher}", "[20]", "[0.07]", "3,000 steps"):
        assert part in text
    assert "linear: Passes over the training images; by default 90," in text
    label = "Column of class labels, used for evaluation only; may be absent."
    assert f"{label} [label; on the run's data set, the run's]" in text


@dataclass(frozen=True)
class NearestMeanSettings:
    power: Positive = option("Power of the features, up to 100 %.", 1.0)
    center: bool = option("Subtract the mean feature.", False)


def nearest_mean(task, settings):
    """Classifies each test image by the nearest class mean."""
    (features, labels), (queries, truth) = task.train_features(), task.test_features()
    offset = features.mean(dim=0) if settings.center else 0
    features, queries = (features - offset) ** settings.power, (queries - offset) ** settings.power
    means = torch.stack([features[labels == label].mean(dim=0) for label in range(16)])
    predictions = torch.cdist(queries, means).argmin(dim=1)
    return {"accuracy": 100 * (predictions == truth).float().mean().item()}


def test_a_protocol_that_is_added_at_run_time(run_folder, backbones, monkeypatch, capsys):
    """It works in the command, in Python and in the card."""
    from hf_essl.hub.card_facts import read_evaluations, results
    from hf_essl.recipe import load_recipe

    entry = Protocol("Nearest-mean accuracy", "nearest class mean", nearest_mean, NearestMeanSettings, 64)
    monkeypatch.setitem(PROTOCOLS, "mean", entry)
    words, output = "--protocol mean --power 2 --center".split(), run_folder / "mean.json"
    assert evaluate(run_folder, *SMALL, *words, "--output", output) == 0
    facts = json.loads(output.read_text())
    shown = f"Nearest-mean accuracy {facts['accuracy']:.2f} % (power 2.0, center True)"
    assert shown in capsys.readouterr().out and facts["accuracy"] > 100 / 16
    data = DataArguments(max_train_samples=160, max_eval_samples=64)
    same = evaluate_backbone(str(run_folder), data, "mean", {"power": 2, "center": True}, report=lambda line: None)
    assert same["accuracy"] == facts["accuracy"]
    evaluations = read_evaluations(run_folder, run_folder / "backbone")
    output.unlink()
    (result,) = results({"dataset": "photo-patches"}, load_recipe(ROOT / "recipes" / "quickstart.yaml"), evaluations)
    assert result.name == "Nearest-mean accuracy" and result.value == facts["accuracy"] and "power" in result.how
    for more, message in (
        (["--power", "0"], "power is 0.0; it should be greater than 0 (default: 1.0)"),
        (["--k", "5"], "k is a setting of knn, not of mean, which accepts power, center"),
    ):
        assert evaluate(run_folder, *SMALL, "--protocol", "mean", *more) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="the setting of mean is 'powr'; choose one of power, center; did you mean"):
        evaluate_backbone(str(run_folder), data, "mean", {"powr": 2})
    with pytest.raises(ValueError, match="protocol is 'meen'; choose one of knn, linear, finetune, mean; did you"):
        evaluate_backbone(str(run_folder), data, "meen")
    with pytest.raises(SystemExit):
        evaluate("--help")
    assert "mean: Power of the features, up to 100 %. [1.0]" in " ".join(capsys.readouterr().out.split())
