"""The card of a run, read as others read it: by the Hub's own parser, by its numbers, and by running its code."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard, metadata_load
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms

from hf_essl.cli import main
from hf_essl.hub.card import card_of_run, card_on_hub, write_card
from hf_essl.hub.trainer import CardCallback
from hf_essl.methods.backbone import fingerprint
from hf_essl.recipe import Recipe, load_recipe, read_recipe
from hf_essl.reporting.metrics import read_metrics
from tests.helpers import small_trainer

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("card")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The trainer and the folder of a small run with all strategies, written by the callback of the Python API."""
    folder = tmp_path_factory.mktemp("home") / "efficient"
    trainer = small_trainer(folder, num_train_epochs=1)
    trainer.add_callback(CardCallback(trainer))
    trainer.train()
    return trainer, folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of that run, with metrics of every kind; `edit` changes them."""
    folder = shutil.copytree(finished[1], tmp_path / "efficient")
    edit(folder, measured_speedup=1.31, plain_step_seconds=0.5, energy_kwh=0.00213, co2e_kg=0.000125)
    return folder


def edit(folder, **values):
    metrics = json.loads((folder / "metrics.json").read_text()) | values
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return metrics


def change_recipe(folder, **values):
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text()) | values
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def evaluation(folder, **values):
    """What `hf-essl evaluate --protocol linear` writes about the weights in the folder."""
    facts = {
        "accuracy": 61.25,
        "protocol": "linear",
        "epochs": 90,
        "learning_rate": 0.8,
        "augment": False,
        "source": str(folder),
        "weights": str(folder / "backbone"),
        "fingerprint": fingerprint(load_file(folder / "backbone" / "model.safetensors")),
        "resolution": 32,
        "dataset": "user/flowers",
        "train_images": 1234,
        "eval_images": 567,
    }
    (folder / "linear.json").write_text(json.dumps(facts | values))


def rows(text, heading):
    """The cells of the first table below a heading, by the first cell of each row."""
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.M | re.S)
    assert section, f"no heading {heading}"
    lines = [line for line in section[1].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert set(cells[1]) == {"---"} and len({len(row) for row in cells}) == 1
    return {row[0]: row[1:] for row in cells[2:]}


def body(text):
    """The card without its YAML head and its blocks of code."""
    return re.sub(r"```.*?```", "", text.split("---\n", 2)[2], flags=re.S)


def headings(text):
    return re.findall(r"^#+ .+$", body(text), re.M)


def equals(cell, value):
    """Whether the number that a cell begins with is `value`, to its last digit."""
    shown = re.match(r"-?[\d,]+(?:\.(\d+))?(?:e(-?\d+))?", cell)
    unit = 10.0 ** (int(shown[2] or 0) - len(shown[1] or ""))
    return abs(float(shown[0].replace(",", "")) - value) <= 0.5001 * unit


def test_its_head_is_valid_and_holds_the_accuracies(run):
    evaluation(run)
    card = card_of_run(run, repo_id="user/mine", license="apache-2.0")
    metrics, head = json.loads((run / "metrics.json").read_text()), metadata_load(card)
    assert (head["library_name"], head["pipeline_tag"]) == ("timm", "image-feature-extraction")
    assert {"self-supervised-learning", "simsiam", "f1-clr", "hard-augment"} <= set(head["tags"])
    assert (head["license"], head["metrics"]) == ("apache-2.0", ["accuracy"])
    assert "datasets" not in head  # photo-patches is on no Hub
    assert head["co2_eq_emissions"]["emissions"] == pytest.approx(0.125)  # grams
    data = ModelCard.load(card).data
    assert data.to_dict() == head and yaml.safe_load(data.to_yaml()) == head
    assert data.model_name == "mine"
    found = {(result.metric_name, result.dataset_name): result.metric_value for result in data.eval_results}
    assert found == {
        ("kNN accuracy (%)", "photo-patches"): pytest.approx(metrics["knn_accuracy"], abs=0.00501),
        ("Linear probe accuracy (%)", "user/flowers"): 61.25,
    }


def test_a_data_set_of_the_hub_is_named_and_a_folder_is_not(run):
    edit(run, dataset="frgfm/imagenette")
    head = metadata_load(card_of_run(run))
    assert head["datasets"] == ["frgfm/imagenette"]
    edit(run, dataset="holiday-pictures")
    change_recipe(run, dataset="holiday-pictures")
    card = card_of_run(run)
    assert "datasets" not in metadata_load(card)
    training = rows(card.read_text(), "What was trained")
    assert training["Terms of the images"] == ["the run did not record their license"]
    assert training["Dataset"] == ["holiday-pictures"]
    text = card.read_text()
    assert "on the 96 images of holiday-pictures, with" in text and "images of the run are not published" in text
    assert "```bash\nhf-essl pretrain recipe.yaml --dataset path/to/images\n```" in text
    assert "The terms of the images are not known to this card." in text


def test_its_numbers_are_those_of_the_run(run):
    evaluation(run)
    text = card_of_run(run).read_text()
    metrics = json.loads((run / "metrics.json").read_text())
    shown = {
        "Results": {
            "kNN accuracy": metrics["knn_accuracy"],
            "kNN accuracy at random initialization": metrics["random_init_knn_accuracy"],
            "Feature std": metrics["feature_std"],
            "Feature std at random initialization": metrics["random_init_feature_std"],
            "RankMe": metrics["rankme"],
            "RankMe at random initialization": metrics["random_init_rankme"],
            "View retrieval": metrics["retrieval"],
            "View retrieval at random initialization": metrics["random_init_retrieval"],
            "Linear probe accuracy": 61.25,
        },
        "Cost": {
            "Operations, counted": metrics["petaflops"],
            "Operations, paper's convention": metrics["petaflops_paper_convention"],
            "Training time": metrics["train_seconds"],
            "Energy": 0.00213,
            "Emissions": 0.000125,
            "Speed-up, predicted": metrics["predicted_speedup"],
            "Speed-up, predicted, paper's convention": metrics["predicted_speedup_paper_convention"],
            "Speed-up, measured": 1.31,
        },
        "What was trained": {
            "Parameters": sum(p.numel() for p in timm.create_model("test_resnet", num_classes=0).parameters()),
            "Features": 96,
            "Training images": 96,
            "Epochs": 1,
            "Optimizer steps": 6,
            "Images per step": 16,
            "Seed": 42,
        },
    }
    for heading, numbers in shown.items():
        cells = rows(text, heading)
        for name, value in numbers.items():
            assert equals(cells[name][0], value), (name, cells[name], value)
    assert rows(text, "Results").keys() == shown["Results"].keys()
    assert rows(text, "Cost").keys() == shown["Cost"].keys()


def test_the_strategies_and_their_schedules(run):
    shown = rows((run / "backbone" / "README.md").read_text(), "Strategies")
    half = "cosine rise to 0.1 in the first 50 % of the run, then cosine fall to 0"
    assert shown == {
        "F1-CLR: learning rate": ["yes", half],
        "F1-CLR: momentum": ["yes", "from 0.95 to 0.85 at the peak and back"],
        "Super Progressive Learning: resolution": [
            "yes",
            "32 px in the first 50 % of the run, then 16 to 32 px in steps of 8 px, 3 stages of equal length",
        ],
        "Super Progressive Learning: augmentation magnitude": ["yes", "4 to 6, linear"],
        "Hard Augment": [
            "yes",
            "the pair with the lowest cosine similarity of 3 views (m), compared at 16 px (r_sel)",
        ],
    }
    change_recipe(run, lr_schedule="cosine", warmup_epochs=0.0, resolution_schedule="constant", num_views=2)
    change_recipe(run, min_magnitude=5.0, max_magnitude=5.0, selection="none")
    text = card_of_run(run).read_text()
    assert rows(text, "Strategies") == {
        "F1-CLR: learning rate": ["no", "cosine annealing from 0.1 to 0"],
        "F1-CLR: momentum": ["no", "0.9 throughout"],
        "Super Progressive Learning: resolution": ["no", "32 px throughout"],
        "Super Progressive Learning: augmentation magnitude": ["no", "5 throughout"],
        "Hard Augment": ["no", "two views, both used for training"],
    }
    assert "with the plain recipe of `hf_essl`" in text and "f1-clr" not in text


def test_a_token_curriculum(run):
    change_recipe(run, min_tokens=0.25, selection_tokens=0.5)
    text = card_of_run(run).read_text()
    shown = rows(text, "Strategies")
    shares = "0.25 to 1 of all, 4 stages of equal length; the others are dropped, except in evaluations"
    assert shown["Token curriculum: share of patch tokens"] == ["yes", shares]
    assert shown["Hard Augment"][1].endswith("compared at 16 px (r_sel) with 0.5 of the patch tokens")
    assert "Hard Augment and Token curriculum of `hf_essl`" in text


def test_the_optimizer_and_the_score_of_the_pairs(run):
    assert "| Optimizer | sgd, weight decay 0.0005 |" in card_of_run(run).read_text()
    change_recipe(run, optim="lars", decay_norm_and_bias=False, selection_score="projection_cosine")
    text = card_of_run(run).read_text()
    assert "| Optimizer | lars, weight decay 0.0005 (not on norms and biases) |" in text
    assert "the pair with the lowest cosine similarity of the projections of 3 views (m)" in text
    change_recipe(run, lr_schedule="cosine", warmup_epochs=0.0, resolution_schedule="constant", momentum=0.8)
    assert "| F1-CLR: momentum | no | 0.8 throughout |" in card_of_run(run).read_text()


def test_what_was_not_measured_leaves_no_trace(run):
    whole = card_of_run(run).read_text()
    evidence = ("knn_accuracy", "retrieval", "feature_std", "rankme")
    numbers = [*evidence, *(f"random_init_{name}" for name in evidence), "energy_kwh", "co2e_kg"]
    edit(run, **dict.fromkeys([*numbers, "measured_speedup", "train_images", "bank_images"]))
    for name in ("curves.png", "views.png", "neighbors.png"):
        (run / name).unlink()
        (run / "backbone" / name).unlink()
    text = card_of_run(run).read_text()
    for word in (
        "## Results",
        "kNN accuracy",
        "RankMe",
        "kWh",
        "Speed-up, measured",
        "Training images",
        "](curves.png)",
    ):
        assert word in whole and word not in text, word
    for word in ("None", "nan", "not measured)"):
        assert word not in body(text), word
    head = metadata_load(run / "backbone" / "README.md")
    assert not {"model-index", "metrics", "model_name", "eval_results", "co2_eq_emissions"} & set(head)
    assert ModelCard.load(run / "backbone" / "README.md").data.to_dict() == head
    assert "- Its accuracy on a task was not measured.\n" in text


def test_no_heading_is_empty(run):
    for text in (card_of_run(run).read_text(), card_of_run(run, baseline=run).read_text()):
        parts = re.split(r"^#+ .+$", text.split("---\n", 2)[2], flags=re.M)[1:]
        assert len(parts) >= len(headings(text)) > 8
        assert all(part.strip() for part in parts)
        assert "\n\n\n" not in text and "{{" not in text and "{%" not in text


def test_pictures_have_texts_and_are_next_to_it(run):
    pictures = dict(re.findall(r"!\[(.+?)\]\((\S+)\)", card_of_run(run).read_text()))
    assert sorted(pictures.values()) == ["curves.png", "neighbors.png", "views.png"] and all(
        len(text) > 40 for text in pictures
    )
    for name in pictures.values():
        assert (run / "backbone" / name).read_bytes() == (run / name).read_bytes()


def test_its_code_loads_the_backbone_and_gives_equal_features(run, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (run / "backbone" / "README.md").read_text(), re.S)
    assert len(blocks) == 3
    monkeypatch.chdir(run)
    pixels = torch.randint(0, 256, (48, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(pixels.numpy())
    picture.save("image.png")
    # 32 of floor(32 / 0.875) = 36 pixels
    crop = transforms.Compose([transforms.Resize(36), transforms.CenterCrop(32), transforms.ToTensor()])
    backbone = timm.create_model("test_resnet", num_classes=0).eval()
    backbone.load_state_dict(load_file("backbone/model.safetensors"))
    with torch.inference_mode():
        expected = backbone((crop(picture)[None] - 0.5) / 0.5)
    for block in blocks:
        names = {}
        exec(block, names)
        torch.testing.assert_close(torch.as_tensor(names["features"]), expected, atol=1e-6, rtol=1e-5)


def test_on_the_hub_the_same_code_loads_the_repository(run):
    local = card_of_run(run).read_text()
    card = card_on_hub(run / "backbone", "user/mine").decode()
    assert card.count("user/mine") == 3 and '"hf-hub:user/mine"' in card
    assert not re.search(r"local-dir|\bbackbone/", card.split("## What was trained")[0])
    assert card.split("## What was trained")[1] == local.split("## What was trained")[1]
    assert card.split("---\n", 2)[2] == card_of_run(run, repo_id="user/mine").read_text().split("---\n", 2)[2]


def test_the_card_of_another_repository_or_of_a_renamed_folder_is_corrected(run):
    card_of_run(run, repo_id="user/old")
    assert "user/old" not in card_on_hub(run / "backbone", "user/new").decode()
    card_of_run(run)
    renamed = (run / "backbone").rename(run / "weights")
    card = card_on_hub(renamed, "user/new").decode().split("## What was trained")[0]
    assert "hf-hub:user/new" in card and "backbone/" not in card
    (renamed / "README.md").write_text("# My own card")
    assert card_on_hub(renamed, "user/new") == b"# My own card"


def test_nothing_names_folders_or_users_of_this_machine(run, monkeypatch):
    home = run.parent
    monkeypatch.setenv("HOME", str(home))
    recipe = replace(read_recipe(run / "recipe.yaml"), words=("pretrain", str(home / "r.yaml"), f"--output_dir={run}"))
    assert recipe.command() == "hf-essl pretrain r.yaml --output_dir efficient"
    assert recipe.command(8) == "accelerate launch --num_processes 8 -m hf_essl pretrain r.yaml --output_dir efficient"
    assert str(run.parents[1]) in json.dumps(yaml.safe_load((run / "recipe.yaml").read_text()))  # it would be there
    evaluation(run)
    edit(run, command=recipe.command())
    card_of_run(run)
    main(["card", str(run), "--into", str(home / "cards")])
    texts = [path for path in (home / "cards").rglob("*") if path.suffix in (".md", ".json")]
    assert len(texts) == 4
    for path in [*texts, run / "backbone" / "README.md"]:
        text = path.read_text()
        assert str(home) not in text and not re.search(r"(?<![\w/:.>])/(tmp|home|root|Users)/", text), path
    embedded = re.search(r"```yaml\n(.*?)```", (run / "backbone" / "README.md").read_text(), re.S)[1]
    assert yaml.safe_load(embedded)["output_dir"] == "efficient"


def test_the_speed_up_over_a_named_baseline(run, tmp_path):
    metrics = json.loads((run / "metrics.json").read_text())
    baseline = shutil.copytree(run, tmp_path / "plain")
    edit(baseline, run="plain", petaflops=2.5 * metrics["petaflops"], train_seconds=3 * metrics["train_seconds"])
    edit(baseline, petaflops_paper_convention=2 * metrics["petaflops_paper_convention"], knn_accuracy=11.0)
    shown = rows(card_of_run(run, baseline=baseline).read_text(), "Comparison with plain")
    assert [shown[name][2] for name in shown] == ["", "", "2.50 x", "2.00 x", "3.00 x"]
    assert shown["kNN accuracy"][1] == "11.0 %"
    edit(baseline, device="a faster machine", eval_images=7)
    shown = rows(card_of_run(run, baseline=baseline).read_text(), "Comparison with plain")
    assert not {"Training time", "kNN accuracy"} & shown.keys() and len(shown) == 3
    edit(baseline, dataset="other")
    with pytest.raises(
        ValueError, match="dataset of the baseline is other, of the run photo-patches; choose a baseline"
    ):
        card_of_run(run, baseline=baseline)


def test_it_states_the_crops_and_tells_the_two_linear_evaluations_apart(run):
    evaluation(run, title="Linear probe accuracy, cached features", crop_pct=0.875)
    (run / "linear.json").rename(run / "cached.json")
    evaluation(run, title="Linear accuracy, SimSiam's protocol", augment=True, accuracy=58.5, crop_pct=0.5)
    (run / "linear.json").rename(run / "cited.json")
    evaluation(run, accuracy=57.25)  # from before there were two, on the whole center square
    shown = rows(card_of_run(run).read_text(), "Results")
    assert "at 32 px, center crop of 0.875 of the short side; 96 labeled" in shown["kNN accuracy"][1]
    value, how = shown["Linear probe accuracy, cached features"]
    assert value.startswith("61.2") and "at 32 px, center crop of 0.875 of the short side" in how
    value, how = shown["Linear accuracy, SimSiam's protocol"]
    assert value.startswith("58.5") and "augment = True, at 32 px, center crop of 0.5 of the short side" in how
    value, how = shown["Linear probe accuracy"]
    assert value.startswith("57.2") and "at 32 px, whole center square" in how


def test_a_run_from_before_the_crop_was_a_setting(run):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({k: v for k, v in recipe.items() if k != "eval_crop_pct"}))
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics.pop("crop_pct"), metrics["resolution"]) == (0.875, 32)
    (run / "metrics.json").write_text(json.dumps(metrics))
    text = card_of_run(run).read_text()
    assert "at 32 px, whole center square; 96 labeled" in rows(text, "Results")["kNN accuracy"][1]
    assert "eval_crop_pct: 1.0" in text and "eval_crop_pct: 0.875" not in text


def test_accuracies_on_different_crops_are_not_compared(run, tmp_path):
    baseline = shutil.copytree(run, tmp_path / "plain")
    assert "kNN accuracy" in rows(card_of_run(run, baseline=baseline).read_text(), "Comparison with efficient")
    edit(baseline, crop_pct=1.0)
    assert "kNN accuracy" not in rows(card_of_run(run, baseline=baseline).read_text(), "Comparison with efficient")


def test_an_evaluation_of_other_weights_is_left_out(run, caplog):
    evaluation(run, fingerprint="0" * 64)
    (run / "notes.json").write_text("[1, 2]")
    assert "61.2" not in card_of_run(run).read_text()
    assert "linear.json is not in the card: it evaluated other weights" in caplog.text
    evaluation(run)
    assert "1,234 labeled training images, 567 evaluation images" in card_of_run(run).read_text()


def test_an_evaluation_that_repeats_the_runs_own_is_listed_once(run):
    knn = {"protocol": "knn", "k": 20, "temperature": 0.07, "dataset": "photo-patches"}
    evaluation(run, accuracy=edit(run)["knn_accuracy"], **knn)
    assert card_of_run(run).read_text().count("| kNN accuracy |") == 1
    evaluation(run, accuracy=1.5, **knn)
    assert card_of_run(run).read_text().count("| kNN accuracy |") == 2


def test_the_recipe_of_a_trainer_loads_back_to_itself(finished, caplog):
    trainer, folder = finished
    model, name = trainer.model.config, trainer.train_dataset.name
    recipe = Recipe.of(model, trainer.data_args, trainer.views.args, trainer.args, name)
    assert recipe.model.backbone == "test_resnet" and recipe.model.method_args
    assert recipe.data.dataset == "photo-patches" and recipe.training is trainer.args
    assert load_recipe(folder / "recipe.yaml") == recipe
    assert read_recipe(folder / "recipe.yaml").views == recipe.views
    trainer.model.config = None
    try:
        trainer.create_model_card()
    finally:
        trainer.model.config = model
    assert "no card is written: the model was built by hand" in caplog.text


@pytest.mark.parametrize("name", ["quickstart", "quickstart_baseline", "imagenette_simsiam_resnet18_cpu"])
def test_a_run_of_an_older_version_gets_a_card(run, name):
    folder = ROOT / "model_cards" / name
    shutil.copyfile(folder / "metrics.json", run / "metrics.json")
    old = re.search(r"```yaml\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    (run / "recipe.yaml").write_text(old)
    metrics, text = read_metrics(run), card_of_run(run).read_text()
    assert f"# SimSiam {metrics['backbone']}, pretrained on {metrics['dataset']}" in text
    assert equals(rows(text, "Results")["kNN accuracy"][0], metrics["knn_accuracy"])
    assert equals(rows(text, "Cost")["Operations, counted"][0], metrics["petaflops"])
    assert ("kWh" in text) == (metrics["energy_kwh"] is not None)


def test_only_step_entries_of_an_older_log_are_renamed(tmp_path):
    step = {"step": 1, "loss": -0.5, "feature_std": 0.04, "feature_spread": 0.9, "selection_score": 0.1}
    other = {"step": 1, "eval_feature_std": 0.02, "feature_std": 0.03}
    (tmp_path / "metrics.json").write_text(json.dumps({"method": "simsiam", "history": [step, other]}))
    assert read_metrics(tmp_path)["history"] == [
        {"step": 1, "loss": -0.5, "embedding_std": 0.04, "embedding_spread": 0.9, "selection_pair_score": 0.1},
        other,
    ]


def test_pretrain_leaves_a_card_with_its_command(tmp_path, monkeypatch, capsys):
    words = """pretrain recipes/quickstart.yaml --max_steps 2 --max_train_samples 64 --max_eval_samples 16
        --per_device_train_batch_size 32 --image_size 32 --resolution 32 --min_resolution 16 --resolution_step 16
        --selection_resolution 16 --measure_speedup false --use_cpu true""".split()
    monkeypatch.chdir(ROOT)
    assert main([*words, "--output_dir", str(tmp_path / "quick")]) == 0
    text = (tmp_path / "quick" / "backbone" / "README.md").read_text()
    assert "```bash\nhf-essl pretrain recipe.yaml\n```" in text
    assert f"The run itself was started by `hf-essl {' '.join(words)} --output_dir quick`" in text
    assert (
        "Speed-up, measured" not in text
        and "Its length was set by max_steps: 2, not by the epochs of the recipe." in text
    )
    assert str(tmp_path) not in text and "pretrained on photo-patches" in text
    (tmp_path / "recipe.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.S)[1])
    shown, kept = load_recipe(tmp_path / "recipe.yaml"), load_recipe(tmp_path / "quick" / "recipe.yaml")
    assert (shown.model, shown.data, shown.views) == (kept.model, kept.data, kept.views)
    assert_a_real_evaluation_appears(tmp_path / "quick")


def assert_a_real_evaluation_appears(run):
    """Of the last checkpoint, whose backbone is the exported one."""
    assert (run / "checkpoint-2" / "model.safetensors").is_file()
    words = "--dataset photo-patches --max_train_samples 64 --max_eval_samples 32 --k 5"
    assert main(["evaluate", str(run), *words.split(), "--output", str(run / "knn.json")]) == 0
    accuracy = json.loads((run / "knn.json").read_text())["accuracy"]
    text = card_of_run(run).read_text()
    shown = re.findall(r"^\| kNN accuracy \| (\S+) % \| `hf-essl evaluate`.* k = 5,.* 64 labeled", text, re.M)
    assert len(shown) == 1 and equals(shown[0], accuracy)


def test_a_run_that_has_not_ended_gets_no_card(tmp_path, caplog):
    trainer = small_trainer(tmp_path / "run")
    trainer.create_model_card()
    assert "no card is written: the run has not ended" in caplog.text
    assert not (tmp_path / "run" / "backbone").exists()


def test_the_index_holds_the_numbers_of_the_runs(run, tmp_path, capsys):
    gallery = tmp_path / "cards"
    gallery.mkdir()
    (gallery / "README.md").write_text("# Mine\n\nA word before.\n")
    other = shutil.copytree(run, tmp_path / "other")
    edit(other, knn_accuracy=12.5, measured_speedup=None, command="hf-essl pretrain other.yaml")
    assert main(["card", str(run), str(other), "--into", str(gallery)]) == 0
    once = (gallery / "README.md").read_text()
    assert main(["card", "--index", str(gallery)]) == 0
    assert (gallery / "README.md").read_text() == once and once.startswith("# Mine\n\nA word before.\n")
    shown = rows(once, "Mine")
    assert list(shown) == ["[efficient](efficient/README.md)", "[other](other/README.md)"]
    for link, cells in shown.items():
        metrics = json.loads((gallery / link[1:].split("]")[0] / "metrics.json").read_text())
        keys = "knn_accuracy random_init_knn_accuracy petaflops train_seconds predicted_speedup measured_speedup"
        for cell, key in zip(cells, keys.split(), strict=False):
            assert cell == "–" if metrics[key] is None else equals(cell, metrics[key]), (link, key)
    assert shown["[other](other/README.md)"][5] == "–"
    again = shutil.copytree(run, tmp_path / "elsewhere" / "other")
    assert main(["card", str(again), str(other), "--into", str(gallery)]) == 2
    assert "two of the runs are named other, and --into has a folder of that name" in capsys.readouterr().err
    assert shown["[other](other/README.md)"][-1] == "`hf-essl pretrain other.yaml`"
    names = sorted(path.name for path in (gallery / "efficient").iterdir())
    assert names == ["README.md", "curves.png", "metrics.json", "neighbors.png", "views.png"]  # and no weights


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no run is given; pass the folder of a finished run, or --index FOLDER"),
        (["nowhere"], "nowhere is not a finished run"),
        (["--index", "."], ". has no sub-folder with a metrics.json"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["card", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_folder_without_a_backbone(run):
    os.remove(run / "backbone" / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not contain model\.safetensors; pass the backbone/ of a finished run"):
        write_card(Path(run) / "backbone", {}, read_recipe(run / "recipe.yaml"))


def test_the_metrics_are_written_when_all_else_is_there(tmp_path, monkeypatch):
    """Whatever takes metrics.json for a finished run also finds its backbone and its card."""
    trainer = small_trainer(tmp_path, max_steps=2)
    trainer.add_callback(CardCallback(trainer))

    def interrupted(*_):
        assert (tmp_path / "backbone" / "model.safetensors").exists() and not (tmp_path / "metrics.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_essl.hub.trainer.write_card", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not (tmp_path / "metrics.json").exists()
