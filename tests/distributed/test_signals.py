"""Ctrl-C and SIGTERM under several processes: one checkpoint, one line, the exit code of the signal."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = """
    --max_train_samples 64 --max_eval_samples 16 --knn_k 3 --per_device_train_batch_size 8 --max_steps 4000
    --save_strategy no --knn_every_epochs 0 --logging_steps 1 --report_to none
""".split()


def start(command, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *command, *WORDS, "--output_dir", str(folder)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stopped(process, number, send):
    """The error output of a run that got the signal after its first steps, and its exit code."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("step 3/"):
            send(process.pid, number)
            break
    _, err = process.communicate(timeout=120)
    return "".join(lines) + err, process.returncode


def whole_checkpoint(folder):
    (checkpoint,) = folder.glob("checkpoint-*")
    assert (checkpoint / "model.safetensors").exists() and (checkpoint / "optimizer.safetensors").exists()
    assert len(list(checkpoint.glob("rng_state*"))) == 2, "both processes have saved"
    return json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_our_launcher_saves_and_exits_with_the_code_of_the_signal(number, tmp_path):
    process = start(["-m", "hf_essl", "pretrain", "quickstart", "--accelerate_config", "cpu"], tmp_path / "run")
    err, code = stopped(process, number, os.kill)
    assert code == 128 + number, err[-3000:]
    assert "Traceback" not in err and err.count("hf-essl: stopped by") == 1
    assert whole_checkpoint(tmp_path / "run") >= 3


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_under_torchrun_saves(tmp_path):
    """The terminal sends it to the launcher and to all processes; the launcher then sends SIGTERM as well."""
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29517", "-m", "hf_essl"]
    process = start([*command, "pretrain", "quickstart", "--use_cpu", "true"], tmp_path / "run")
    err, code = stopped(process, signal.SIGINT, os.killpg)
    assert code != 0 and whole_checkpoint(tmp_path / "run") >= 3, err[-3000:]
