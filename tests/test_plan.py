"""A run without a recipe: which settings it gets from the images and the machine, and that it runs."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hf_essl import cli
from hf_essl.config import DataArguments
from hf_essl.data.survey import Survey, survey
from hf_essl.plan import Machine, make_plan
from hf_essl.planned_run import is_recipe
from hf_essl.recipe import RecipeError, build_recipe
from hf_essl.training import batch_size

CPU = Machine("cpu", cores=2, free_memory=20 * 10**9, free_disk=100 * 10**9)
GPU = Machine("cuda", cores=16, free_memory=100 * 10**9, free_disk=100 * 10**9, has_bf16=True)
FOLDER = Survey(train_images=300, classes=10, per_class=30, short_side=500)


def chosen(found=FOLDER, machine=CPU, given=None, find_batch=None):
    plan = make_plan("images", found, machine, given or {}, find_batch)
    return plan.fields, plan


def test_a_small_folder_on_a_cpu_by_hand():
    fields, plan = chosen()
    assert (fields["resolution"], fields["min_resolution"], fields["image_size"]) == (64, 32, 128)  # 64 · 400 / 224
    assert fields["per_device_train_batch_size"] == 64  # 240 images in three steps
    assert fields["learning_rate"] == 0.05  # 0.1 · 64 / 128
    assert fields["num_train_epochs"] == 667 and fields["warmup_epochs"] == 111.2  # 2,000 steps; a sixth
    assert (fields["eval_holdout"], fields["knn_k"], fields["cache"]) == (0.2, 15, "memory")
    assert plan.warnings == ["48 of 240 images miss each epoch, other ones each time: they do not fill a batch of 64"]


def test_a_large_set_on_a_gpu_by_hand():
    found = Survey(train_images=500_000, eval_images=1000, classes=100, per_class=4000, short_side=480)
    fields, _ = chosen(found, GPU, find_batch=lambda fields: 256)
    assert (fields["resolution"], fields["min_resolution"], fields["selection_resolution"]) == (224, 96, 64)
    assert (fields["num_views"], fields["image_size"], fields["backbone"]) == (6, 400, "resnet50")
    assert fields["learning_rate"] == 0.2 and fields["num_train_epochs"] == 100 and fields["bf16"] is True
    assert fields["cache"] == "none" and fields["dataloader_num_workers"] == 15  # 240 GB
    assert "eval_holdout" not in fields and fields["knn_k"] == 20


@pytest.mark.parametrize(
    ("free_memory", "free_disk", "cache"),
    [(10**12, 10**12, "memory"), (10**9, 10**12, "disk"), (10**9, 10**9, "none")],
)
def test_images_are_kept_where_they_fit(free_memory, free_disk, cache):
    fields, _ = chosen(Survey(50_000, short_side=480), Machine("cpu", 4, free_memory, free_disk))
    assert fields["cache"] == cache


@pytest.mark.parametrize(("processes", "machines", "cache"), [(1, 1, "memory"), (2, 1, "disk"), (2, 2, "memory")])
def test_each_process_has_its_own_copy_of_the_images_in_memory(processes, machines, cache):
    machine = Machine("cpu", 4, free_memory=60 * 10**9, free_disk=10**12, processes=processes, machines=machines)
    fields, _ = chosen(Survey(100_000, short_side=480), machine, {"image_size": 288})
    assert fields["cache"] == cache  # 3 · 288² · 100,000 bytes are 24.9 GB, below and above half of the memory


def test_the_disk_of_the_cache_folder_counts(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: seen.append(path) or SimpleNamespace(free=7))
    assert Machine.here(use_cpu=True, cache_dir=str(tmp_path / "not" / "yet")).free_disk == 7
    assert seen == [tmp_path]


@pytest.mark.parametrize("images", [17, 63, 300, 5_000, 9_469, 100_000, 1_300_000])
@pytest.mark.parametrize("processes", [1, 2, 8])
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_a_small_set_has_a_short_queue(images, machine, processes):
    machine = replace(machine, processes=processes)
    fields, _ = chosen(Survey(images), machine, {"method": "mocov2"}, lambda fields: 256)
    queue = fields.get("method_args", {}).get("queue_length", 65_536)
    batch = fields["per_device_train_batch_size"] * processes
    if images > batch + 2:
        assert queue < images - batch, "as MoCo itself requires"
    if images >= 8 * batch:
        assert queue >= min(images / 4, 65_536)


def test_the_learning_rate_follows_the_batch_over_all_processes():
    found = Survey(100_000, short_side=480)
    for processes, accumulation, optimizer, expected in (
        (1, 1, "sgd", 0.1), (8, 1, "sgd", 0.8), (2, 4, "sgd", 0.8), (2, 1, "adamw_torch", 1e-3),
        (8, 1, "adamw_torch", 2e-3),
    ):  # fmt: skip
        machine = Machine("cuda", 16, 10**12, 10**12, processes=processes)
        given = {"gradient_accumulation_steps": accumulation, "optim": optimizer, "per_device_train_batch_size": 128}
        assert chosen(found, machine, given)[0]["learning_rate"] == pytest.approx(expected)


@pytest.mark.parametrize("images", [1, 2, 5, 17, 63, 300, 5_000, 1_000_000])
@pytest.mark.parametrize("side", [None, 8, 33, 100, 3000])
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize("labeled", [False, True])
def test_every_plan_is_a_recipe_that_fits_its_images(images, side, machine, labeled):
    classes = 2 if labeled and images > 1 else 0
    found = Survey(images, classes=classes, per_class=images // 2 if classes else 0, short_side=side)
    fields, plan = chosen(found, machine)
    fields.pop("bf16", None)  # there is no GPU here
    held_out = max(1, round(0.1 * images)) if classes else 0
    assert fields["per_device_train_batch_size"] <= max(images - held_out, 1)
    recipe = build_recipe({**fields, "use_cpu": True}, "images", ())
    assert recipe.views.resolutions[-1] <= recipe.data.image_size or side is not None
    assert all(choice.reason for choice in plan.choices)


def test_what_the_user_sets_wins_and_the_rest_follows():
    fields, plan = chosen(
        given={"resolution": 96, "num_train_epochs": 12, "backbone": "resnet18", "selection": "none"}
    )
    assert not {"resolution", "num_train_epochs", "backbone", "selection"} & fields.keys()
    assert fields["min_resolution"] == 48 and fields["warmup_epochs"] == 2.0  # 96 · 96 / 224 is 41, of 16 px: 48
    assert not {"num_views", "selection_resolution", "method_args"} & fields.keys()
    assert any("36 steps are few" in line for line in plan.warnings)


def test_warnings():
    found = Survey(100, notices=("labels are not used: label_column label has no label for any image",))
    _, plan = chosen(found, given={"per_device_train_batch_size": 64})
    assert any("36 of 100 images miss each epoch" in line for line in plan.warnings)
    assert any("labels that were found are not used" in line for line in plan.warnings)
    assert "label_column label has no label" in plan.describe()


@pytest.mark.slow
def test_the_largest_batch_is_found_by_trial(monkeypatch):
    tried = []

    def trial(model, views, args, image_size, size):
        tried.append(size)
        if size > 50:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(batch_size, "try_steps", trial)
    arguments = (None, None, None, 64)
    assert batch_size.largest_batch(*arguments) == 32 and tried == [256, 128, 64, 32]

    def nothing_fits(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    class Views:
        resolution = 224

    monkeypatch.setattr(batch_size, "try_steps", nothing_fits)
    with pytest.raises(ValueError, match="224 px does not fit in the GPU's memory, even with one image"):
        batch_size.largest_batch(None, Views, None, 64)


def test_a_trial_is_a_step_with_the_selection_pass(tmp_path):
    from tests.helpers import small_trainer

    trainer = small_trainer(tmp_path)
    before = trainer.model.projector[0].weight.detach().clone()
    batch_size.try_steps(trainer.model, trainer.views.args, trainer.args, 32, 4)
    assert not torch.equal(before, trainer.model.projector[0].weight)


@pytest.mark.parametrize(
    ("word", "recipe"),
    [
        ("quickstart", True),
        ("recipes/quickstart.yaml", True),
        ("quickstart/byol", True),
        ("missing.yaml", True),
        ("photo-patches", False),
        ("frgfm/imagenette", False),
        ("imagenette/simsiam_resnet50_efficient", True),
        ("/no/such/folder", False),
        ("tests", False),
    ],
)
def test_recipes_and_datasets_are_told_apart(word, recipe, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    assert is_recipe(word) == recipe


def test_a_misspelled_name_of_a_packaged_folder_is_no_dataset():
    with pytest.raises(RecipeError, match="did you mean imagenette/simsiam_resnet50_efficient"):
        is_recipe("imagenette/simsiam_resnet5_efficient")


def test_a_word_that_is_neither_is_one_line():
    with pytest.raises(RecipeError, match=r"there is no recipe 'quikstart', .* did you mean quickstart"):
        is_recipe("quikstart")


@pytest.fixture
def folder(tmp_path):
    """40 images of two classes in mixed sizes, one torn, and a stray file."""
    rng = random.Random(0)
    root = tmp_path / "mine"
    for name, color in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
        (root / name).mkdir(parents=True)
        for index in range(20):
            size = (rng.randint(40, 90), rng.randint(40, 90))
            Image.new("RGB", size, color).save(root / name / f"{index}.{rng.choice(['png', 'jpg', 'webp'])}")
    whole = next((root / "red").glob("*.jpg")).read_bytes()
    (root / "red" / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "notes.txt").write_text("x")
    return root


def test_a_survey_by_hand(folder):
    found = survey(DataArguments(dataset=str(folder)))
    assert (found.train_images, found.eval_images, found.classes, found.per_class) == (41, 0, 2, 20)
    assert 40 <= found.short_side <= 90
    assert len(found.notices) == 1 and found.notices[0].endswith("first notes.txt")


@pytest.mark.parametrize("words", [["--streaming"], ["--dataset", "photo-patches"]])
def test_settings_that_a_plan_cannot_have(words, folder, capsys):
    assert cli.main(["pretrain", str(folder), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("hf-essl: error:") == 1 and "Traceback" not in error


@pytest.mark.parametrize(
    ("images", "given", "reason"),
    [
        (300, {}, "a CPU gains nothing from more"),
        (100, {}, "a third of 90 images or less"),
        (13, {}, "there are 12 images"),  # at least eight, so that BatchNorm has some
    ],
)
def test_the_reason_of_a_batch_size_is_true(images, given, reason):
    classes = 2 if images == 100 else 0
    found = Survey(images, classes=classes, per_class=images // 2 if classes else 0)
    size = next(c for c in chosen(found)[1].choices if c.name == "per_device_train_batch_size")
    assert size.reason == reason.replace("90", "80").replace("12", "13")


def test_a_plan_says_what_the_run_would_refuse_or_could_do(folder, capsys):
    with pytest.raises(ValueError, match="240 training images do not fill a batch of 500; lower --batch_size"):
        chosen(given={"per_device_train_batch_size": 500})
    for given in ({"gradient_accumulation_steps": 8}, {"total_batch_size": 512}):
        chosen(given=given)  # a step of several passes may see images twice
    assert "raise --max_steps" in chosen(given={"max_steps": 100})[1].describe()
    plan = ["pretrain", str(folder), "--plan", "--use_cpu"]
    assert cli.main([*plan, "--budget", "5minutes"]) == 2
    assert "budget is '5minutes'; write a time" in capsys.readouterr().err
    assert cli.main([*plan, "--budget", "5min"]) == 0
    assert "the run measures its speed first" in capsys.readouterr().out
    for words, steps in ((["--budget", "20epochs"], 20 * 4), (["--max_steps", "30"], 30)):  # 41 images in batches of 8
        assert cli.main([*plan, *words, "--batch_size", "8", "--eval_holdout", "0.2"]) == 0
        assert f"\n{steps:,} steps of 8 images: " in capsys.readouterr().out


def test_other_commands_take_images_as_the_plan_does(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["cost", str(folder), "--use_cpu", "--max_steps", "30"]) == 0
    assert "| 30 |" in capsys.readouterr().out
    assert cli.main(["preview", str(folder), "--use_cpu"]) == 0
    assert Path("preview.png").exists()


@pytest.mark.parametrize("words", [[], ["--use_cpu"]])
def test_a_launch_on_the_cpu_is_planned_for_the_cpu(words, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert cli.main(["pretrain", str(folder), "--plan", "--accelerate_config", "cpu", *words]) == 0
    assert "--backbone test_resnet" in capsys.readouterr().out


@pytest.mark.slow
def test_images_alone_train_and_their_recipe_repeats_the_run(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        "--use_cpu",
        "--max_steps",
        "4",
        "--max_unreadable",
        "0.1",
        "--disable_tqdm",
        "--measure_speedup",
        "false",
    ]
    assert cli.main(["pretrain", str(folder), "--plan", *words]) == 0
    assert not Path("runs").exists()
    assert cli.main(["pretrain", str(folder), *words]) == 0
    shown = capsys.readouterr()
    assert "41 training images, 0 to evaluate on, 2 classes" in shown.out and "--learning_rate" in shown.out
    assert (shown.out + shown.err).count("notes.txt") == 2, "once per command: the run does not repeat the survey"
    metrics = json.loads(Path("runs/mine/metrics.json").read_text())
    assert metrics["steps"] == 4 and metrics["knn_accuracy"] is not None and metrics["unreadable_images"] == 1
    again = ["pretrain", "runs/mine/recipe.yaml", "--output_dir", "runs/again"]
    assert cli.main(again) == 0
    first, second = (load_file(f"runs/{name}/backbone/model.safetensors") for name in ("mine", "again"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
