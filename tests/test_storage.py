"""Disks that fail, two runs in one folder, and signals: one line, and what was finished stays."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from transformers import TrainerCallback

from hf_essl import cli, storage
from hf_essl.manifest import damage
from hf_essl.run_folder import checkpoints, last_complete_checkpoint, what_is_wrong
from hf_essl.run_lock import run_lock
from hf_essl.storage import StorageError
from tests.helpers import small_trainer

SAVING = {"save_strategy": "steps", "save_steps": 4}


class At(TrainerCallback):
    """Calls a function at the end of a step."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.function()


def failing(number):
    def write(*_, **__):
        raise OSError(number, os.strerror(number))

    return write


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("writer", ["torch.save", "safetensors.torch.save_file", "hf_essl.manifest.write_text"])
def test_a_save_that_fails_is_one_line_and_keeps_the_checkpoint_before(tmp_path, monkeypatch, number, writer):
    fail = At(6, lambda: monkeypatch.setattr(writer, failing(number)))
    trainer = small_trainer(tmp_path, callbacks=[fail], **SAVING)
    with pytest.raises(StorageError) as error:
        trainer.train()
    line = str(error.value)
    assert line.startswith(f"{tmp_path / 'checkpoint-8'} cannot be written: {os.strerror(number)}; it needs ")
    assert f"{tmp_path / 'checkpoint-4'} is kept" in line and "\n" not in line
    assert checkpoints(tmp_path) == [tmp_path / "checkpoint-4"] and what_is_wrong(tmp_path / "checkpoint-4") is None


def test_the_systems_limit_on_files(tmp_path):
    """torch's own writer and safetensors fail with their own kinds of errors."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = At(6, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1])))
    try:
        with pytest.raises(StorageError, match=r"checkpoint-8 cannot be written: File too large.* it needs \d"):
            small_trainer(tmp_path, callbacks=[limit], **SAVING).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert last_complete_checkpoint(tmp_path).endswith("checkpoint-4")


def test_a_folder_that_vanishes(tmp_path):
    vanish = At(6, lambda: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(StorageError, match=r"^output_dir .*run has vanished"):
        small_trainer(tmp_path / "run", callbacks=[vanish], **SAVING).train()


def test_space_for_two_checkpoints_is_checked_before_the_run(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage)
    trainer = small_trainer(tmp_path)
    weights = sum(value.nbytes for value in trainer.model.state_dict().values())
    with pytest.raises(ValueError, match=r"0.0 MB free, and two checkpoints need ([\d.]+) MB") as error:
        trainer.train()
    assert trainer.state.global_step == 0 and f"{weights * 3 / 1e6:.0f}" <= str(error.value).split("need ")[1]


def test_a_folder_that_cannot_be_written_is_known_before_images_are_loaded(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("hf_essl.pretrain.load_images", lambda *_: pytest.fail("images were loaded"))
    assert cli.main(["pretrain", "recipes/quickstart.yaml", "--output_dir", str(tmp_path / "file" / "run")]) == 2
    assert f"output_dir {tmp_path / 'file' / 'run'} cannot be written: Not a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["embed", "x", "y", "--output", "{}/f.parquet"],
        ["evaluate", "x", "--output", "{}/knn.json"],
        ["export", "x", "--output", "{}/onnx"],
        ["export", "x", "--output", "{}"],
        ["neighbors", "x", "--output", "{}/n.png"],
        ["compare", "x", "--output", "{}/new/c.png"],
    ],
)
def test_nothing_is_written_into_a_checkpoint(tmp_path, capsys, words):
    small_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    checkpoint = tmp_path / "checkpoint-1"
    before = sorted(checkpoint.rglob("*"))
    capsys.readouterr()
    assert cli.main([word.format(checkpoint) for word in words]) == 2
    error = capsys.readouterr().err
    assert "checkpoint-1 is a checkpoint, which a further file would damage" in error and error.count("\n") == 1
    assert sorted(checkpoint.rglob("*")) == before and damage(checkpoint) is None


def hold(folder):
    """Another process that holds the lock of a folder until it is killed."""
    code = (
        f"import time, pathlib\nfrom hf_essl.run_lock import run_lock\nwith run_lock(pathlib.Path({str(folder)!r})):"
    )
    code += "\n print(1, flush=True)\n time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    return process


def test_a_second_run_in_a_folder_is_refused_until_the_first_dies(tmp_path):
    other = hold(tmp_path)
    try:
        with pytest.raises(ValueError, match=rf"is in use by process {other.pid} on {os.uname().nodename}; wait"):
            small_trainer(tmp_path, max_steps=1).train()
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    small_trainer(tmp_path, max_steps=1).train()
    with run_lock(tmp_path), run_lock(tmp_path):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_gives_its_exit_code(tmp_path, number, monkeypatch, capsys):
    from hf_essl.trainer import SSLTrainer

    add = SSLTrainer._add_callbacks

    def with_signal(self):
        add(self)
        self.add_callback(At(2, lambda: signal.raise_signal(number)))

    monkeypatch.setattr(SSLTrainer, "_add_callbacks", with_signal)
    before = signal.signal(number, signal.default_int_handler)  # pytest itself may run under nohup
    words = """--max_train_samples 64 --max_eval_samples 16 --num_train_epochs 2 --warmup_epochs 1 --image_size 32
        --resolution 32 --min_resolution 16 --resolution_step 16 --selection_resolution 16 --use_cpu true
        --per_device_train_batch_size 16 --backbone test_resnet""".split()
    command = ["pretrain", "recipes/quickstart.yaml", *words, "--output_dir", str(tmp_path)]
    try:
        assert cli.main(command) == 128 + number
    finally:
        signal.signal(number, before)
    assert f"stopped by {number.name} after step " in capsys.readouterr().err
    step = int(last_complete_checkpoint(tmp_path).rpartition("-")[2])
    assert step in (2, 3)
    assert torch.is_grad_enabled()
