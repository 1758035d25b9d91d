"""Distillation, against cosines and passes of the teacher by hand."""

import json
import math
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hf_essl import cli, export_backbone
from hf_essl.config import SSLTrainingArguments, ViewArguments
from hf_essl.cost import FlopCounter, estimate_cost
from hf_essl.methods import SSLModel
from hf_essl.schedules import Curriculum
from hf_essl.selection import HardAugment
from hf_essl.views import Views
from tests.helpers import small_trainer

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 0.4)


def teacher_folder(folder, seed=1):
    """An exported ViT for 48 px, with statistics of its own."""
    torch.manual_seed(seed)
    network = timm.create_model("test_vit", num_classes=0, pretrained_cfg_overlay={"mean": MEAN, "std": STD})
    return str(export_backbone(network, folder, input_size=48))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return teacher_folder(tmp_path_factory.mktemp("teacher") / "backbone")


def build(teacher, **arguments):
    torch.manual_seed(0)
    arguments = {"teacher": teacher, "projector_hidden": 16, **arguments}
    return SSLModel.from_timm("test_resnet", "distill", method_args=arguments, resolutions=(32, 64)).train()


def test_the_loss_is_the_cosine_distance_of_each_view_to_the_teachers_features(teacher, views):
    """The teacher, loaded by timm, gets the views at 48 px, and with its own statistics."""
    model = build(teacher)
    network = timm.create_model(f"local-dir:{teacher}", pretrained=True, dynamic_img_size=True).eval()
    expected = torch.zeros(6)
    for view in views:
        pixels = view * torch.tensor(model.pixel_std).view(3, 1, 1) + torch.tensor(model.pixel_mean).view(3, 1, 1)
        small = F.interpolate(pixels, size=(48, 48), mode="bilinear", antialias=True)
        with torch.no_grad():
            targets = network((small - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
        projected = model.projector(model.backbone(view))
        for row in range(6):
            z, t = projected[row].tolist(), targets[row].tolist()
            dot = sum(a * b for a, b in zip(z, t, strict=True))
            expected[row] += (1 - dot / math.sqrt(sum(a * a for a in z) * sum(b * b for b in t))) / 2
    torch.testing.assert_close(model(*views)["loss"].detach(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("score", ["loss", "cosine"])
def test_hard_augment_chooses_the_pair_of_highest_loss(teacher, score):
    args = ViewArguments(resolution=64, num_views=4, selection="hard", selection_resolution=32, selection_score=score)
    model, images = build(teacher), torch.randint(0, 256, (5, 3, 80, 80), dtype=torch.uint8)
    augment = HardAugment(Views(args))
    plan = augment.plan(images)
    small = list(plan.small)
    comparison = augment.compare(model, plan)
    with torch.no_grad():
        per_view = torch.stack([1 - F.cosine_similarity(*model.embed(view)) for view in small], dim=1)  # 5 x 4
    expected = per_view.argsort(dim=1, descending=True)[:, :2].sort(dim=1).values
    chosen = torch.tensor(augment.pairs)[comparison.scores.argmax(dim=1)]
    assert torch.equal(chosen, expected)


def test_the_alarms_watch_the_student_relative_to_the_teachers_mean(teacher):
    """Features in a narrow cone are no collapse; one point for all images is one."""
    model = build(teacher)
    cone = F.normalize(torch.randn(64, 32) + 20 * torch.ones(32), dim=1)
    spread = {}
    for name, student in {"follows": cone, "point": cone.mean(dim=0).add(0.01).expand(64, -1)}.items():
        rows = F.normalize(model.embedding((student, student), (cone, cone)), dim=1)
        spread[name] = rows.std(dim=0).mean().item() * math.sqrt(32)
    assert spread["point"] < 0.01 and 0.9 < spread["follows"] < 1.1


@pytest.mark.parametrize(("resolution", "sides"), [(None, (48, 48)), (64, (64, 64)), ("view", (32, 64))])
def test_the_teachers_cost_is_that_of_its_own_passes(teacher, resolution, sides):
    model = build(teacher, **({} if resolution is None else {"teacher_resolution": resolution}))
    network = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True).eval().to("meta")
    counter = FlopCounter.of(model, ViewArguments(resolution=64))
    for size, side in zip((32, 64), sides, strict=True):
        with torch.no_grad(), FlopCounterMode(display=False) as real:
            network(torch.zeros(1, 3, side, side, device="meta"))  # on a CPU, torch does not count attention
        step = counter.step(size)
        assert step.teacher == pytest.approx(2 * real.get_total_flops(), rel=1e-6)
        with torch.no_grad(), FlopCounterMode(display=False) as student:
            model.projector(model.backbone(torch.zeros(2, 3, size, size)))
        assert step.forward == pytest.approx(student.get_total_flops(), rel=1e-6)


def test_the_ledger_and_both_speedups_contain_the_teacher(teacher):
    """A teacher at its own size costs the same at every resolution, so a curriculum saves less."""
    model = build(teacher)
    args = ViewArguments(resolution=64, resolution_schedule="progressive", min_resolution=32, resolution_step=32)
    counter = FlopCounter.of(model, args)
    cost = estimate_cost(model, args, Curriculum.from_args(args, SSLTrainingArguments(use_cpu=True)), 10, 100, counter)
    fixed = counter.step(64).teacher * 1000 / 1e15
    assert cost.counted_teacher_petaflops == pytest.approx(fixed)
    student = 8 * counter.backbone_macs(64) * 1000 / 1e15  # the paper's convention: half of the steps at 32 px
    assert cost.paper_petaflops == pytest.approx(student * (0.5 * 0.25 + 0.5) + fixed)
    assert cost.paper_speedup == pytest.approx((student + fixed) / cost.paper_petaflops)
    assert 1 < cost.paper_speedup < 1.6


def test_the_overhead_of_the_selection_has_the_teachers_passes(teacher):
    """What the same run without a selection costs less."""
    model, costs = build(teacher), []
    for changes in ({}, {"selection": "hard", "num_views": 4, "selection_resolution": 32}):
        args = ViewArguments(resolution=64, **changes)
        curriculum = Curriculum.from_args(args, SSLTrainingArguments(use_cpu=True))
        costs.append(estimate_cost(model, args, curriculum, 10, 100))
    plain, hard = (cost.paper_petaflops for cost in costs)
    assert costs[1].paper_selection_overhead == pytest.approx(100 * (hard / plain - 1)) and hard > 1.3 * plain
    assert costs[0].paper_selection_overhead == 0


@pytest.mark.parametrize("views", [{}, {"selection": "none", "num_views": 2}])
def test_training_leaves_the_teacher_as_it_was(views, tmp_path):
    trainer = small_trainer(tmp_path, method="distill", max_steps=4, views=views, save_strategy="steps", save_steps=4)
    teacher = trainer.model.teacher
    before = {name: value.clone() for name, value in teacher.backbone.state_dict().items()}
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in teacher.backbone.state_dict().items())
    assert not any(module.training for module in teacher.modules()) and trainer.model.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert {name for name in saved if name.startswith("teacher.")} == {"teacher.digest"}


RECIPE = """
backbone: test_resnet
method: distill
method_args: {teacher: %s, projector_hidden: 16}
dataset: photo-patches
max_train_samples: 48
max_eval_samples: 16
image_size: 48
resolution: 48
min_resolution: 32
resolution_step: 16
resolution_schedule: super_progressive
selection: hard
num_views: 3
selection_resolution: 32
lr_schedule: f1_clr
warmup_epochs: 0.5
num_train_epochs: 2
per_device_train_batch_size: 16
save_strategy: steps
save_steps: 3
knn_k: 3
measure_speedup: false
use_cpu: true
disable_tqdm: true
"""


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_names_its_teacher_and_notices_another(tmp_path, capsys):
    folder = tmp_path / "teacher_run"  # as a finished run has it, in backbone/
    teacher_folder(folder / "backbone")
    (tmp_path / "r.yaml").write_text(RECIPE % folder)
    run = tmp_path / "run"
    words = ["pretrain", str(tmp_path / "r.yaml"), "--output_dir", str(run)]
    assert cli.main(words) == 0
    expected = load_file(run / "checkpoint-6" / "model.safetensors")
    shutil.rmtree(run / "checkpoint-6")
    assert cli.main([*words, "--resume_from_checkpoint", "true"]) == 0
    resumed = load_file(run / "checkpoint-6" / "model.safetensors")
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.items())

    card = (run / "backbone" / "README.md").read_text()
    assert "| Method | Distillation |" in card and "| Teacher | `teacher_run` |" in card and str(tmp_path) not in card
    assert json.loads((run / "metrics.json").read_text())["petaflops"] > 0
    assert not any("teacher" in name for name in load_file(run / "backbone" / "model.safetensors"))

    shutil.rmtree(run / "checkpoint-6")
    teacher_folder(folder / "backbone", seed=2)
    capsys.readouterr()
    assert cli.main([*words, "--resume_from_checkpoint", "true"]) == 2
    assert "the teacher has other weights than the one that the training began with" in capsys.readouterr().err


def test_a_state_with_the_hash_of_another_teacher_is_refused(teacher, tmp_path):
    model, other = build(teacher), build(teacher_folder(tmp_path / "other", seed=3))
    model.load_state_dict(build(teacher).state_dict())
    with pytest.raises(ValueError, match="the teacher has other weights") as error:
        model.load_state_dict(other.state_dict())
    assert "\n" not in str(error.value)


def test_the_students_first_weights_do_not_depend_on_the_teacher(teacher):
    """Nor does the global random stream."""
    first, second = build(teacher), build("test_resnet", teacher_pretrained=False)
    assert all(
        torch.equal(value, second.backbone.state_dict()[name]) for name, value in first.backbone.state_dict().items()
    )
    again = build("test_resnet", teacher_pretrained=False)
    assert torch.equal(second.teacher.digest, again.teacher.digest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"method is distill, which needs teacher; set method_args: \{teacher: …\}"),
        ({"teacher": "resnet5O"}, r"teacher: resnet5O; .*not a timm model; did you mean .*resnet50"),
        ({"teacher": "runs/none"}, r"'runs/none', where no config.json is; give the folder of a finished run"),
        ({"teacher": "transformers:./none"}, r"contains no config.json"),
        ({"teacher": "torchvision:resnet5O"}, r"torchvision"),
        ({"teacher": "test_vit", "teacher_resolution": 0}, r"teacher_resolution"),
        ({"teacher": "test_vit", "teacher_resolution": "own"}, r"teacher_resolution is 'own'"),
        (
            {"teacher": "convit_tiny", "teacher_resolution": "view", "teacher_pretrained": False},
            r"accepts only its own",
        ),
    ],
)
def test_a_teacher_that_cannot_be_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        SSLModel.from_timm("test_resnet", "distill", method_args=arguments)
    assert "\n" not in str(error.value)


def test_published_weights_that_cannot_be_loaded_are_one_line(monkeypatch):
    create = timm.create_model

    def offline(*args, pretrained=False, **options):
        if pretrained:
            raise OSError("We couldn't connect to the Hub")
        return create(*args, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match="the weights of resnet18 cannot be loaded: We couldn't connect"):
        SSLModel.from_timm("test_resnet", "distill", method_args={"teacher": "resnet18"})


def test_a_folder_of_this_machine_is_no_teacher_of_a_saved_method(teacher, tmp_path):
    with pytest.raises(ValueError, match=r"teacher is .*, a folder of this machine"):
        build(teacher).save_pretrained(tmp_path / "saved")


def test_a_damaged_teacher_is_one_line(tmp_path):
    folder = teacher_folder(tmp_path / "backbone")
    weights = load_file(f"{folder}/model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "blocks.1" not in name}, f"{folder}/model.safetensors"
    )
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        build(folder)
    assert "\n" not in str(error.value)
