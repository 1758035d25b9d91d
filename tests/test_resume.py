"""Resuming: whole checkpoints only, other settings by the rule of each field, and the facts of the whole run."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from hf_essl.config.resume import IMAGES, changes_since, resume_rules
from hf_essl.config.values import GROUPS, all_fields
from hf_essl.run_folder import checkpoints, last_complete_checkpoint, what_is_wrong
from hf_essl.training.checkpoints import rotate
from hf_essl.training.run_state import RunState
from tests.helpers import small_trainer
from tests.test_trainer import StopAfter

SAVING = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of 12 steps with checkpoints 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("saved")
    small_trainer(folder, **SAVING).train()
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def resume(run, checkpoint=True, views=None, **settings):
    trainer = small_trainer(run, views=views, **{**SAVING, **settings})
    trainer.train(resume_from_checkpoint=checkpoint if checkpoint is True else str(run / checkpoint))
    return trainer


def test_every_field_has_one_rule():
    assert resume_rules().keys() == all_fields().keys(), "declare the rule of a new field in its group's resume_rules"
    for group in GROUPS.values():
        assert set(group.resume_rules.values()) <= {"acts", "fixed", "free"}


@pytest.mark.parametrize("key", all_fields())
def test_another_value_of_each_field_acts_is_refused_or_does_not_matter(key):
    before, now = {key: "some value", IMAGES: 8}, {key: "another", IMAGES: 8}
    if resume_rules()[key] == "fixed":
        with pytest.raises(ValueError, match=rf"^{key} is 'another', but checkpoint-4 .* with 'some value'; "):
            changes_since(before, now, 4, "checkpoint-4")
    else:
        found = changes_since(before, now, 4, "checkpoint-4")
        assert [tuple(change) for change in found] == (
            [(4, key, "some value", "another")] if resume_rules()[key] == "acts" else []
        )
    assert changes_since(before, dict(before), 4, "checkpoint-4") == []


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def exchange(path):
    """By the file of the checkpoint before."""
    shutil.copy(path.parent.with_name("checkpoint-8") / path.name, path)


def foreign(path):
    path.with_name(f"other-{path.name}").write_bytes(b"1")


DAMAGES = [flip, cut, empty, exchange, foreign, lambda path: path.unlink()]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_never_trained_on(run, damage, caplog):
    newest = run / "checkpoint-12"
    whole = shutil.copytree(newest, run / "whole")
    names = sorted(path.name for path in newest.iterdir() if path.name != "manifest.json")
    assert {
        "model.safetensors",
        "optimizer.safetensors",
        "rng_state.safetensors",
        "run_state.json",
        "trainer_state.json",
    } <= {*names}
    for name in names:
        same = (run / "checkpoint-8" / name).read_bytes() == (newest / name).read_bytes()
        if damage is exchange and same:
            continue
        damage(newest / name)
        assert what_is_wrong(newest) and last_complete_checkpoint(run).endswith("checkpoint-8"), name
        shutil.rmtree(newest)
        shutil.copytree(whole, newest)
        assert what_is_wrong(newest) is None
    damage(newest / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"^resume_from_checkpoint is .*checkpoint-12, which cannot be resumed: "
    ) as e:
        resume(run, "checkpoint-12")
    assert "\n" not in str(e.value)
    trainer = resume(run)
    assert "checkpoint-8; newer ones are not whole: checkpoint-12 (" in caplog.text
    assert trainer.state.global_step == 12 and what_is_wrong(newest) is None, "it is saved again"
    weights = load_file(newest / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in load_file(whole / "model.safetensors").items())


@pytest.mark.parametrize("text", ["{}", "[]", "", "3", '{"files": {}}', '{"files": [], "step": 12}', "\x00"])
def test_any_content_of_the_json_files(run, text):
    for name in ("manifest.json", "trainer_state.json", "run_state.json"):
        newest = run / "checkpoint-12"
        kept = (newest / name).read_text()
        (newest / name).write_text(text)
        assert last_complete_checkpoint(run).endswith("checkpoint-8")
        (newest / name).write_text(kept)
    assert last_complete_checkpoint(run).endswith("checkpoint-12")


def make_old(checkpoint):
    """As of a version from before manifests: torch's files, and no state of the run."""
    trainer = small_trainer(checkpoint.parent, **SAVING)
    trainer.create_optimizer_and_scheduler(12)
    trainer._load_optimizer_and_scheduler(str(checkpoint))
    trainer._load_rng_state(str(checkpoint))
    Trainer._save_optimizer_and_scheduler(trainer, str(checkpoint))
    Trainer._save_rng_state(trainer, str(checkpoint))
    new = ("optimizer.safetensors", "scheduler.safetensors", "rng_state.safetensors")
    for name in ("manifest.json", "run_state.json", *new):
        (checkpoint / name).unlink()


def test_a_checkpoint_from_before_manifests_loads_with_a_warning(run, caplog):
    for step in (4, 8):
        make_old(run / f"checkpoint-{step}")
    weights = load_file(run / "checkpoint-12" / "model.safetensors")
    trainer = resume(run, "checkpoint-8")
    assert trainer.state.global_step == 12 and "checkpoint-8 has no manifest" in caplog.text
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())
    (run / "checkpoint-8" / "trainer_state.json").write_text("[]")
    with pytest.raises(ValueError, match=r"its trainer_state.json is missing or damaged"):
        resume(run, "checkpoint-8")


def test_a_manifest_that_was_deleted_is_damage(run):
    (run / "checkpoint-12" / "manifest.json").unlink()
    assert what_is_wrong(run / "checkpoint-12") == "its manifest.json is missing"
    assert last_complete_checkpoint(run).endswith("checkpoint-8")
    make_old(run / "checkpoint-8")
    assert what_is_wrong(run / "checkpoint-8") == "its manifest.json is missing", "checkpoint-4 has one"
    make_old(run / "checkpoint-4")
    assert what_is_wrong(run / "checkpoint-8") is None


def test_a_save_that_was_cut_short_is_not_an_old_checkpoint(run):
    newest = run / "checkpoint-12"
    (newest / "manifest.json").rename(newest / ".manifest.json.tmp")
    assert what_is_wrong(newest) == "it was not saved to its end"


def test_new_settings_act_from_here_on(run):
    new = {"learning_rate": 0.02, "weight_decay": 0.01, "min_momentum": 0.5, "max_momentum": 0.6}
    trainer = resume(run, "checkpoint-8", **new, logging_steps=2, save_steps=2)
    entries = {entry["step"]: entry for entry in trainer.state.log_history if "learning_rate" in entry}
    assert all(0.5 <= entries[step]["momentum"] <= 0.6 for step in (10, 12))
    assert entries[8]["momentum"] >= 0.85 and entries[8]["learning_rate"] > 0.02 > entries[10]["learning_rate"]
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.01}
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {0.02}
    assert sorted(entries) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] and (run / "checkpoint-10").exists()
    changed = [("learning_rate", 0.1, 0.02), ("weight_decay", 5e-4, 0.01)]
    found = [tuple(change) for change in RunState.read(run / "checkpoint-12").changes]
    assert [(8, *change) for change in changed] == found[:2] and len(found) == 4
    trainer.create_model_card()
    assert "# changed on resume: learning_rate: 0.1 to step 8, then 0.02" in (run / "recipe.yaml").read_text()
    assert "learning_rate: 0.1 to step 8, then 0.02" in (run / "backbone" / "README.md").read_text()
    assert json.loads((run / "metrics.json").read_text())["changes"][0]["after"] == 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "byol"}, "method is 'byol', but checkpoint-12 was trained with 'simsiam'"),
        ({"optim": "adamw_torch"}, "optim is 'adamw_torch', but checkpoint-12 was trained with 'sgd'"),
        ({"per_device_train_batch_size": 8}, "images_per_step is 8, but checkpoint-12 was trained with 16"),
        ({"views": {"num_views": 4}}, "num_views is 4, but checkpoint-12 was trained with 3"),
        ({"seed": 1}, "seed is 1, but checkpoint-12 was trained with 42"),
        ({"num_train_epochs": 1}, "is at step 12, beyond the 6 steps"),
    ],
)
def test_what_must_not_change_is_one_line(run, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        resume(run, **settings)
    assert "\n" not in str(error.value)


def test_another_network_in_an_old_checkpoint_is_one_line(run):
    for step in (4, 8, 12):
        make_old(run / f"checkpoint-{step}")
    with pytest.raises(ValueError, match=r"checkpoint-12 holds another network: .* is .* there and .* here; resume"):
        resume(run, method="byol")


def test_a_finished_run_trains_nothing_and_goes_on_with_more_epochs(run, caplog):
    weights = load_file(run / "checkpoint-12" / "model.safetensors")
    trainer = resume(run)
    assert trainer.is_finished and trainer.state.global_step == 12
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())
    state = json.loads((run / "checkpoint-12" / "trainer_state.json").read_text())
    assert [e["step"] for e in trainer.state.log_history] == [e["step"] for e in state["log_history"]]
    trainer = resume(run, num_train_epochs=3)
    assert trainer.state.global_step == trainer.state.max_steps == 18
    assert [tuple(change) for change in trainer.run_state.changes] == [(12, "num_train_epochs", 2, 3)]


def test_a_finished_run_of_a_part_of_an_epoch_trains_nothing(tmp_path):
    small_trainer(tmp_path, **SAVING, max_steps=8).train()
    assert resume(tmp_path, max_steps=8).state.global_step == 8


def test_clock_and_images_are_those_of_the_whole_run(tmp_path):
    """Also without a log, as in a short run that is stopped."""
    cut = small_trainer(tmp_path, logging_strategy="no", callbacks=[StopAfter(7)])
    cut.train()
    past = RunState.read(tmp_path / "checkpoint-7")
    assert past.images_seen == 7 * 16 and 0 < past.seconds <= cut.clock.seconds
    resumed = small_trainer(tmp_path, logging_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    now = resumed.current_state()
    assert now.images_seen == 12 * 16 and now.seconds > past.seconds
    assert now.pairs_at_start == past.pairs_at_start and len(past.pairs_at_start) > 0


def test_resuming_an_earlier_checkpoint_loses_none_and_mixes_none(run, caplog):
    later = {step: (run / f"checkpoint-{step}" / "model.safetensors").read_bytes() for step in (8, 12)}
    resume(run, "checkpoint-4", learning_rate=0.02, save_total_limit=1)
    assert "checkpoint-12 is now abandoned-checkpoint-12, checkpoint-8 is now abandoned-checkpoint-8" in caplog.text
    for step, weights in later.items():
        assert (run / f"abandoned-checkpoint-{step}" / "model.safetensors").read_bytes() == weights
    assert [path.name for path in checkpoints(run)] == ["checkpoint-12"], "the limit deletes those of this training"
    assert (run / "checkpoint-12" / "model.safetensors").read_bytes() != later[12]


def test_resuming_a_checkpoint_of_another_folder_keeps_what_is_there(run, saved, tmp_path):
    other = shutil.copytree(run / "checkpoint-4", tmp_path / "elsewhere" / "checkpoint-4")
    trainer = small_trainer(run, **SAVING)
    trainer.train(resume_from_checkpoint=str(other))
    assert sorted(p.name for p in run.glob("abandoned-*")) == [f"abandoned-checkpoint-{n}" for n in (12, 4, 8)]
    assert [path.name for path in checkpoints(run)] == ["checkpoint-12", "checkpoint-8"] and other.exists()
    resume(run, "checkpoint-8")
    assert (run / "abandoned1-checkpoint-12").exists() and (run / "abandoned-checkpoint-12").exists()


@pytest.mark.parametrize(
    ("steps", "newest", "best", "limit", "left"),
    [
        ((4, 8, 12), 12, None, 2, (12, 8)),
        ((4, 8, 12), 12, 4, 2, (12, 4)),
        ((4, 8, 12), 12, 4, 1, (12, 4)),
        ((4, 8, 12), 12, 12, 1, (12,)),
        ((4, 8, 12), 12, None, None, (12, 8, 4)),
        ((4, 8, 12, 16), 8, None, 2, (8, 4)),  # 12 and 16 are damaged: a whole one would have been renamed
        ((4, 8, 12, 16), 8, None, 3, (16, 8, 4)),
        ((8, 10, 9), 9, 8, 2, (9, 8)),
    ],
)
def test_rotation(tmp_path, steps, newest, best, limit, left):
    for step in steps:
        (tmp_path / f"checkpoint-{step}").mkdir()
    paths = [None if step is None else tmp_path / f"checkpoint-{step}" for step in (newest, best)]
    rotate(tmp_path, paths[0], limit, paths[1] and str(paths[1]))
    assert [int(path.name.split("-")[1]) for path in checkpoints(tmp_path)] == list(left)


@pytest.mark.parametrize("seed", [0, 3, 42])
def test_the_seed_of_the_data_is_that_of_the_run_unless_it_is_given(seed):
    before, now = {"seed": seed}, {"seed": seed, "data_seed": seed}
    assert changes_since(before, now, 1, "checkpoint-1") == changes_since(now, before, 1, "checkpoint-1") == []
    with pytest.raises(ValueError, match="data_seed is 7, but checkpoint-1 was trained with"):
        changes_since(before, {"seed": seed, "data_seed": 7}, 1, "checkpoint-1")
