"""What needs a GPU: half precision, compiled backbones, feeding, a cache on the device, SyncBatchNorm over several."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_essl.benchmark import benchmark
from hf_essl.config import DataArguments, SSLTrainingArguments, ViewArguments
from hf_essl.data import NO_LABEL, Feed
from hf_essl.methods import METHODS, SSLModel
from hf_essl.recipe import load_recipe
from hf_essl.trainer import SSLTrainer
from hf_essl.views import Views
from tests.helpers import TRAINING, VIEWS, patches

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def gpu_trainer(folder, method="simsiam", cache="device", **training):
    torch.manual_seed(0)
    settings = {**TRAINING, "use_cpu": False, "learning_rate": 0.005, **training}
    return SSLTrainer(
        SSLModel.from_timm("test_resnet", method, method_args=METHODS[method].small_args),
        SSLTrainingArguments(output_dir=str(folder), **settings),
        patches("train", 96),
        patches("validation", 32),
        view_args=ViewArguments(**VIEWS),
        data_args=DataArguments(image_size=32, cache=cache),
    )


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_every_method_trains_in_every_precision(tmp_path, method, precision):
    trainer = gpu_trainer(tmp_path, method, **({} if precision == "float32" else {precision: True}))
    trainer.train()
    assert trainer.state.global_step == 12 and all(map(math.isfinite, losses(trainer)))
    assert trainer.model.backbone.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_a_gpu_gives_the_losses_of_a_cpu(tmp_path):
    on_gpu = gpu_trainer(tmp_path / "gpu", max_steps=3)
    on_cpu = gpu_trainer(tmp_path / "cpu", cache="none", max_steps=3, use_cpu=True)
    for trainer in (on_gpu, on_cpu):
        trainer.train()
    assert losses(on_gpu) == pytest.approx(losses(on_cpu), abs=1e-2)


@pytest.mark.parametrize("order", ["fixed", "random"])
def test_views_are_those_of_a_cpu_and_nothing_waits_for_the_device(order):
    images = torch.randint(0, 256, (8, 3, 48, 48), dtype=torch.uint8)
    views = Views(ViewArguments(solarize_p=[0.3], grayscale_p=0.3, jitter_order=order), seed=1)
    drawn, there = [views.sample(images) for _ in range(2)], images.cuda()
    on_cpu, _ = views.render_all(images, drawn, 32), views.render_all(there, drawn, 32)  # the latter compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = views.render_all(there, drawn, 32)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=2 / 255 / 0.224, rtol=0)


def test_a_copy_waits_for_nothing_and_the_step_for_the_copy():
    feed = Feed(torch.device("cuda"))
    busy = torch.randn(4096, 4096, device="cuda")
    batches = [torch.full((64, 3, 128, 128), value, dtype=torch.uint8).pin_memory() for value in range(1, 9)]
    label = torch.full((64,), NO_LABEL).pin_memory()
    sums = []
    for batch in batches:
        sums.append(feed({"image": batch, "label": label, "unreadable": []})["image"].sum())
        for _ in range(20):
            busy = busy @ busy.T / 4096  # the device falls behind, so that a copy that did not wait would be seen
    assert [int(total) // (64 * 3 * 128 * 128) for total in sums] == list(range(1, 9))


def test_batches_are_pinned_and_train_alike(tmp_path):
    """From pinned memory by workers, and out of a cache on the device."""
    fed = gpu_trainer(tmp_path / "fed", cache="none", max_steps=4, dataloader_num_workers=2)
    batch = next(iter(fed.get_train_dataloader()))
    assert batch["image"].is_pinned() and batch["image"].device.type == "cpu"
    kept = gpu_trainer(tmp_path / "kept", max_steps=4)
    for trainer in (fed, kept):
        trainer.train()
    assert losses(fed) == pytest.approx(losses(kept), abs=1e-3)


def test_a_benchmark_waits_for_the_device():
    words = ["--backbone", "resnet18", "--per_device_train_batch_size", "64", "--resolution_schedule", "constant"]
    found = benchmark(load_recipe(ROOT / "recipes" / "quickstart.yaml", words), steps=3, rounds=2)
    seconds = found.stages[0].seconds
    parts = sum(seconds[name] for name in ("forward", "backward", "optimizer"))
    assert found.device == torch.cuda.get_device_name()
    assert 0.7 * seconds["limit"] < parts < 3 * seconds["limit"]  # were they not waited for, they would be far less


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simsiam", "dino"])
def test_a_compiled_backbone_gives_the_losses_of_an_eager_one(tmp_path, method):
    eager = gpu_trainer(tmp_path / "eager", method, max_steps=4)
    compiled = gpu_trainer(tmp_path / "compiled", method, max_steps=4, torch_compile=True)
    for trainer in (eager, compiled):
        trainer.train()
    assert losses(compiled) == pytest.approx(losses(eager), abs=1e-2)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_command_trains_on_all_gpus(tmp_path):
    words = ["recipes/quickstart.yaml", "--max_steps", "4", "--output_dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "hf_essl", "pretrain", *words, "--accelerate_config", "multi_gpu"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "metrics.json").read_text())["processes"] == torch.cuda.device_count()
