"""What needs a GPU: half precision, compiled backbones, a cache on the device, SyncBatchNorm over several."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_essl.arguments import DataArguments, SSLTrainingArguments, ViewArguments
from hf_essl.methods import METHODS, SSLModel
from hf_essl.trainer import SSLTrainer
from tests.helpers import TRAINING, VIEWS, patches
from tests.methods.small import SMALL_HEADS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def gpu_trainer(folder, method="simsiam", cache="device", **training):
    torch.manual_seed(0)
    settings = {**TRAINING, "use_cpu": False, "learning_rate": 0.005, **training}
    return SSLTrainer(
        SSLModel.from_timm("test_resnet", method, method_args=SMALL_HEADS[method]),
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
        [sys.executable, "-m", "hf_essl.cli", "pretrain", *words, "--accelerate_config", "multi_gpu"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "metrics.json").read_text())["processes"] == torch.cuda.device_count()
