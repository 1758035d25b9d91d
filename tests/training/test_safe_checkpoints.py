"""Resuming executes no code of a checkpoint, and reads the files of earlier versions."""

import pickle
import shutil

import pytest
import torch
from transformers import Trainer

from hf_essl.manifest import write_manifest
from hf_essl.training.safe_checkpoints import OPTIMIZER, SCHEDULER
from tests.fault_runs import SAVING, same_weights
from tests.helpers import small_trainer
from tests.training.test_plain_state import Hostile

SETTINGS = {**SAVING, "online_probe": True}
OLD = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "online_probe.pt")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of 12 steps whose checkpoint 8 also has the files of an earlier version, in a folder of its own."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = small_trainer(folder, **SETTINGS)
    trainer.train()
    old = shutil.copytree(folder / "checkpoint-8", folder / "old" / "checkpoint-8")
    trainer = small_trainer(folder / "again", **SETTINGS)
    trainer.create_optimizer_and_scheduler(12)
    trainer._load_optimizer_and_scheduler(str(old))
    trainer._load_rng_state(str(old))
    Trainer._save_optimizer_and_scheduler(trainer, str(old))
    Trainer._save_rng_state(trainer, str(old))
    torch.save(dict(trainer.online_probe.state_dict()), old / "online_probe.pt")
    for name in (
        OPTIMIZER,
        SCHEDULER,
        "rng_state.safetensors",
        "online_probe.safetensors",
        "manifest.json",
        "run_state.json",
    ):
        (old / name).unlink()
    assert set(OLD) <= {path.name for path in old.iterdir()}
    return folder


def resume(checkpoint):
    trainer = small_trainer(checkpoint.parent, **SETTINGS)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    return trainer


def test_a_checkpoint_holds_no_pickle_that_is_read(saved):
    names = {path.name for path in (saved / "checkpoint-12").iterdir()}
    assert {path.rpartition(".")[2] for path in names} == {"safetensors", "json", "bin"}
    assert {name for name in names if name.endswith(".bin")} == {"training_args.bin"}  # never read


def test_the_files_of_an_earlier_version_resume_bit_for_bit(saved, tmp_path, caplog):
    old = shutil.copytree(saved / "old" / "checkpoint-8", tmp_path / "checkpoint-8")
    resume(old)
    last = "checkpoint-12/model.safetensors"
    assert same_weights(tmp_path / last, saved / last)
    assert "starts from scratch" not in caplog.text, "the probe was read"


@pytest.mark.slow
@pytest.mark.parametrize("version", ["new", "old"])
def test_a_pickle_in_any_file_executes_nothing(saved, version, tmp_path):
    """With a manifest that fits, as an attacker would write it."""
    source = saved / ("old/checkpoint-8" if version == "old" else "checkpoint-8")
    names = sorted(path.name for path in source.iterdir() if path.name != "manifest.json")
    assert len(names) >= 7
    for name in names:
        for kind in ("plain", "torch") if name in OLD else ("plain",):
            folder, mark = shutil.copytree(source, tmp_path / name / kind / "checkpoint-8"), tmp_path / "mark"
            if kind == "plain":
                (folder / name).write_bytes(pickle.dumps(Hostile(mark)))
            else:
                torch.save({"state": Hostile(mark)}, folder / name)
            write_manifest(folder, 8, "")
            if name == "training_args.bin":
                resume(folder)
            else:
                with pytest.raises(ValueError, match=r"checkpoint-8") as error:
                    resume(folder)
                assert "\n" not in str(error.value), name
            assert not mark.exists(), name


def test_the_list_of_a_sharded_checkpoint_is_not_unpickled(saved, tmp_path):
    folder, mark = shutil.copytree(saved / "checkpoint-8", tmp_path / "checkpoint-8"), tmp_path / "mark"
    (folder / "pytorch_model_fsdp_0").mkdir()
    (folder / "pytorch_model_fsdp_0" / ".metadata").write_bytes(pickle.dumps(Hostile(mark)))
    write_manifest(folder, 8, "")
    with pytest.raises(ValueError, match=r"in shards, whose list is a pickle; .*FULL_STATE_DICT") as error:
        resume(folder)
    assert "\n" not in str(error.value) and not mark.exists()
