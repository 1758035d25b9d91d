"""Launch configurations by name, and two real processes started by the command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from hf_essl import cli
from hf_essl.commands.launch import find_config, launch_command

ROOT = Path(__file__).parents[2]
NAMES = ["single_gpu", "multi_gpu", "multi_node", "fsdp", "cpu"]
RUN = """
    --max_steps 2 --max_train_samples 64 --max_eval_samples 16 --per_device_train_batch_size 8 --knn_k 3
    --logging_steps 1 --disable_tqdm
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_reads_each_configuration(name):
    path = find_config(name)
    config = load_config_from_file(str(path))
    assert config.num_processes > 0
    header = path.read_text().split("compute_environment")[0]
    assert "-m hf_essl pretrain RECIPE" in header and path.name in header


def test_a_path_serves_as_well_as_a_name(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("num_processes: 4\nuse_cpu: true\n")
    assert find_config(str(own)) == own
    command = launch_command(own, ["recipe.yaml", "--seed", "1"])
    assert command[command.index("--config_file") + 1] == str(own) and "--num_processes" not in command
    assert command[-7:] == ["hf_essl", "pretrain", "recipe.yaml", "--seed", "1", "--use_cpu", "true"]


def test_all_gpus_are_counted(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    for name, processes in (("multi_gpu", "4"), ("fsdp", "4"), ("single_gpu", None), ("multi_node", None)):
        command = launch_command(find_config(name), ["recipe.yaml"])
        assert (command[command.index("--num_processes") + 1] if "--num_processes" in command else None) == processes
        assert "--use_cpu" not in command


def test_mistakes_are_told_before_a_process_starts(monkeypatch):
    with pytest.raises(
        ValueError, match=r"accelerate_config is 'multi_gpus'; choose one of .* did you mean 'multi_gpu'"
    ):
        find_config("multi_gpus")
    with pytest.raises(
        ValueError, match=r"choose one of cpu, fsdp, multi_gpu, multi_node, single_gpu; or pass the path"
    ):
        find_config("tpu_pod")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"needs a GPU and this machine has none; use `cpu`"):
        launch_command(find_config("multi_gpu"), [])


def run(*words, **environment):
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_the_command_starts_two_processes(tmp_path):
    recipe = "recipes/quickstart/mocov2.yaml"
    heads = ["--method_args", "{projector_hidden: 32, queue_length: 24}", "--output_dir", str(tmp_path)]
    done = run("-m", "hf_essl", "pretrain", recipe, *RUN, *heads, "--accelerate_config", "cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("mocov2 on test_resnet") == 1  # one process speaks
    assert "2 steps of 16 images in 2 processes" in done.stdout
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["processes"] == 2 and metrics["steps"] == 2 and metrics["images_per_step"] == 16


SWEEP = """
extends: {recipe}
metric: linear
metric_args: {{epochs: 2}}
measure_speedup: false
grid: {{learning_rate: [0.01, 0.1]}}
output_dir: {out}
"""


@pytest.mark.slow
def test_a_sweep_runs_in_two_processes_and_one_writes(tmp_path):
    """Also if it finds a half-made run, whose checkpoints one process deletes, and a run that lacks its metric."""
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP.format(recipe=ROOT / "recipes" / "quickstart_baseline.yaml", out=tmp_path / "runs"))
    broken = tmp_path / "runs" / "learning_rate0.01" / "checkpoint-1"
    broken.mkdir(parents=True)
    command = ("-m", "hf_essl", "sweep", str(file), *RUN, "--accelerate_config", "cpu")
    done = run(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("started") == 2 and done.stdout.count("| learning_rate | seeds |") == 1
    folders = [tmp_path / "runs" / f"learning_rate{rate}" for rate in (0.01, 0.1)]
    for folder in folders:
        metrics, linear = (json.loads((folder / f"{name}.json").read_text()) for name in ("metrics", "linear"))
        assert metrics["processes"] == linear["processes"] == 2 and linear["protocol"] == "linear"
        assert metrics["images_per_step"] == 16
    assert not broken.exists()
    (folders[1] / "linear.json").unlink()
    again = run(*command)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count(": finished") == again.stdout.count(": evaluated") == 1
    assert (tmp_path / "runs" / "table.md").read_text() in again.stdout


@pytest.mark.slow
def test_accelerate_launch_starts_two_processes(tmp_path):
    """Without --use_cpu as well: each process by itself on all images would be the silent alternative."""
    launch = ("-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/cpu.yaml")
    out = ("--output_dir", str(tmp_path))
    done = run(*launch, "-m", "hf_essl", "pretrain", "recipes/quickstart.yaml", *RUN, *out, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "metrics.json").read_text())["processes"] == 2


def test_a_mistake_in_the_recipe_is_told_once():
    done = run(
        "-m", "hf_essl", "pretrain", "recipes/quickstart.yaml", "--resolution", "95", "--accelerate_config", "cpu"
    )
    assert done.returncode == 2
    assert done.stderr.count("hf-essl: error:") == 1 and "Traceback" not in done.stderr
    assert yaml.safe_load(find_config("cpu").read_text())["use_cpu"] is True


@pytest.mark.parametrize("text", ["a: [", "- a\n- b", "x"])
def test_a_launch_configuration_that_is_none_is_one_line(tmp_path, capsys, text):
    (tmp_path / "c.yaml").write_text(text)
    assert cli.main(["pretrain", "quickstart", "--accelerate_config", str(tmp_path / "c.yaml")]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("hf-essl: error: accelerate_config ")
