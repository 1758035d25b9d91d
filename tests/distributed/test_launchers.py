"""The ways to start several processes: torchrun on two nodes, the tasks of a SLURM step, accelerate's launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_essl.commands.launch import join_slurm_step

ROOT = Path(__file__).parents[2]
WORDS = """
    pretrain quickstart --use_cpu true --max_train_samples 64 --max_eval_samples 16 --knn_k 3 --max_steps 2
    --per_device_train_batch_size 8 --save_strategy no --measure_speedup false --report_to none
""".split()


def start(command, folder, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.Popen(
        [sys.executable, *command, *WORDS, "--output_dir", str(folder)],
        cwd=ROOT,
        env={**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(processes, folder):
    """The metrics of a run that all processes have ended well."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs[0][-3000:]
    assert sum("simsiam on test_resnet" in output for output in outputs) == 1, "one process speaks"
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_two_nodes_of_two_processes_train_together(tmp_path):
    processes = []
    for node in ("0", "1"):
        torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", node, "--nproc_per_node", "2"]
        torchrun += ["--master_addr", "127.0.0.1", "--master_port", "29641", "-m", "hf_essl"]
        processes.append(start(torchrun, tmp_path / "run"))
    metrics = finished(processes, tmp_path / "run")
    assert (metrics["processes"], metrics["images_per_step"], metrics["steps"]) == (4, 32, 2)


@pytest.mark.slow
def test_the_tasks_of_a_slurm_step_train_together(tmp_path):
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "4242", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1"}
    tasks = [{**step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in ("0", "1")]
    processes = [start(["-m", "hf_essl"], tmp_path / "run", **task) for task in tasks]
    metrics = finished(processes, tmp_path / "run")
    assert (metrics["processes"], metrics["images_per_step"]) == (2, 16)


def test_slurms_variables_become_torchruns():
    step = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "12003"}
    environment = {**step, "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}
    join_slurm_step(environment)
    assert (environment["RANK"], environment["LOCAL_RANK"], environment["WORLD_SIZE"]) == ("9", "1", "16")
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.7", "29503")
    assert environment["LOCAL_WORLD_SIZE"] == "8"


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "RANK": "0", "WORLD_SIZE": "8"},  # torchrun in a step
    ],
)
def test_other_commands_under_slurm_stay_as_they_are(environment):
    before = dict(environment)
    join_slurm_step(environment)
    assert environment == before


LAUNCHED = """
import json, sys
from pathlib import Path
from accelerate import debug_launcher
from tests.helpers import patches, small_trainer

def train(folder):
    images = patches("train", 64)
    trainer = small_trainer(Path(folder) / "run", train=images, per_device_train_batch_size=8, max_steps=2)
    trainer.train()
    facts = {"world_size": trainer.args.world_size, "steps": trainer.state.global_step}
    (Path(folder) / f"rank{trainer.args.process_index}.json").write_text(json.dumps(facts))

if __name__ == "__main__":
    debug_launcher(train, args=(sys.argv[1],), num_processes=2)
"""


@pytest.mark.slow
def test_accelerates_launcher_inside_a_program(tmp_path):
    """`debug_launcher` is `notebook_launcher` for CPU processes."""
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert found == [{"world_size": 2, "steps": 2}] * 2
