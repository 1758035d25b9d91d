"""Trackers: what W&B's own files hold of a run that was stopped, resumed and begun anew; its config; its pictures."""

import contextvars
import importlib.util
import json
import random
import sys
import types
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wandb
import yaml
from PIL import Image
from safetensors import safe_open
from transformers import TrainerControl, TrainerState
from transformers.integrations import integration_utils

from hf_essl.config import DataArguments, SSLTrainingArguments, ViewArguments
from hf_essl.methods import SimSiam
from hf_essl.methods.backbone import build_backbone
from hf_essl.recipe import RecipeError, load_recipe
from hf_essl.trainer import SSLTrainer
from hf_essl.training.callbacks import LogOftenCallback
from hf_essl.training.step_log import RunningMeans
from hf_essl.training.trackers import WandbRunCallback, run_config
from hf_essl.views.tiles import tile_views
from tests.helpers import patches, small_trainer
from tests.test_trainer import StopAfter
from tests.wandb_file import read_sessions

pytestmark = pytest.mark.xdist_group("tracking")  # its W&B runs start once

SETTINGS = {"report_to": "wandb", "online_probe": True, "knn_every_epochs": 1}
STEP_METRICS = {
    *("loss", "loss_first_view", "loss_second_view", "learning_rate", "momentum", "resolution", "magnitude"),
    *("images_per_second", "petaflops", "embedding_std", "embedding_spread", "embedding_rank"),
    *("probe_loss", "probe_train_accuracy"),
    *("selection_gap", "selection_pair_score", "selection_mean_score", "selection_changed", "selection_cost_percent"),
}
EVALUATION_METRICS = {"knn_accuracy", "feature_std", "rankme", "probe_accuracy"}
TOKEN = "hf_" + "tokentokentoken"


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """Three offline sessions: stopped after step 8, resumed to the end, and a fresh run into the same folder."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as environment:
        for name in ("DIR", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
            environment.setenv(f"WANDB_{name}", str(folder))
        for name, value in {"MODE": "offline", "LOG_MODEL": "end", "SILENT": "true", "PROJECT": "patches"}.items():
            environment.setenv(f"WANDB_{name}", value)
        environment.setenv("HF_TOKEN", TOKEN)
        output = folder / "my run"
        small_trainer(output, callbacks=[StopAfter(8)], **SETTINGS).train()
        resumed = small_trainer(output, **SETTINGS)
        resumed.train(resume_from_checkpoint=True)
        small_trainer(output, max_steps=1, report_to="wandb").train()
        wandb.teardown()  # waits for W&B's process, which writes the files
    return resumed, read_sessions(folder)


def logged(session, prefix):
    """The metrics of a prefix by the step at which they were logged."""
    found = {}
    for entry in session.history:
        metrics = {key.removeprefix(prefix): value for key, value in entry.items() if key.startswith(prefix)}
        found.setdefault(entry["train/global_step"], {}).update(metrics)
    return {step: metrics for step, metrics in found.items() if metrics.keys() - {"global_step", "epoch"}}


def test_every_metric_is_in_the_runs_file(tracked):
    _, (cut, rest, _) = tracked
    steps = {**logged(cut, "train/"), **logged(rest, "train/")}
    trained = {step: entry for step, entry in steps.items() if "loss" in entry}
    assert sorted(trained) == list(range(1, 13))
    for entry in trained.values():
        assert entry.keys() >= STEP_METRICS
    assert [trained[step]["resolution"] for step in range(1, 13)] == [32] * 3 + [16] * 3 + [24] * 3 + [32] * 3
    evaluations = {**logged(cut, "eval/"), **logged(rest, "eval/")}
    assert sorted(evaluations) == [0, 6, 12] and all(e.keys() >= EVALUATION_METRICS for e in evaluations.values())


def test_what_is_logged_is_the_trainers_log(tracked):
    resumed, (_, rest, _) = tracked
    ours = {e["step"]: e for e in resumed.state.log_history if "loss" in e and e["step"] > 8}
    theirs = {step: e for step, e in logged(rest, "train/").items() if "loss" in e}
    assert sorted(theirs) == sorted(ours) == [9, 10, 11, 12]
    for step, entry in ours.items():
        assert all(theirs[step][key] == pytest.approx(entry[key]) for key in STEP_METRICS)


def test_a_resumed_training_is_the_same_run_and_a_fresh_one_another(tracked):
    resumed, (cut, rest, fresh) = tracked
    assert cut.run.run_id == rest.run.run_id != fresh.run.run_id
    assert {s.run.display_name for s in (cut, rest, fresh)} == {"my run"}
    assert {s.run.project for s in (cut, rest, fresh)} == {"patches"}
    assert [s.exit_code for s in (cut, rest, fresh)] == [0, 0, 0]
    assert (Path(resumed.args.output_dir) / "wandb_run_id").read_text() == f"{fresh.run.run_id}\n"
    assert wandb.run is None  # a further run in this process is its own


def test_the_summary_holds_the_figures_of_the_report(tracked):
    """Of the session that ended the run; the one that was stopped has none."""
    resumed, (cut, rest, _) = tracked
    evaluations = [entry for entry in resumed.state.log_history if "eval_knn_accuracy" in entry]
    assert rest.summary["report/knn_accuracy"] == pytest.approx(evaluations[-1]["eval_knn_accuracy"])
    assert rest.summary["report/random_init_knn_accuracy"] == pytest.approx(evaluations[0]["eval_knn_accuracy"])
    assert rest.summary["report/steps"] == 12 and rest.summary["report/method"] == "simsiam"
    assert rest.summary["report/petaflops"] > 0 and rest.summary["report/predicted_speedup"] > 1
    assert not [name for name in cut.summary if name.startswith("report/")]


def test_views_are_pictured_when_the_resolution_changes(tracked):
    _, (cut, rest, _) = tracked
    entries = [e for session in (cut, rest) for e in session.history if "views.caption" in e]
    assert [e["train/global_step"] for e in entries] == [1, 4, 7, 9, 10]  # 9: the first after the resumption
    captions = [e["views.caption"] for e in entries]
    assert [caption.split(",")[0] for caption in captions] == ["32 px", "16 px", "24 px", "24 px", "32 px"]
    files = sorted(cut.folder.glob("files/media/images/*.png"))
    assert len(files) == 3
    for file in files:
        picture = np.asarray(Image.open(file).convert("RGB"), dtype=float)
        assert min(picture.shape[:2]) > 200 and picture.std() > 20


def test_tracking_changes_no_weight(tracked, tmp_path):
    resumed, _ = tracked
    plain = small_trainer(tmp_path, online_probe=True, knn_every_epochs=1)
    plain.train()
    assert plain.state.global_step == resumed.state.global_step == 12
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_the_config_is_the_recipe_without_paths_and_tokens(tracked):
    resumed, (cut, _, _) = tracked
    config = cut.config
    groups = (resumed.model.config, resumed.views.args)
    for field, value in {k: v for group in groups for k, v in asdict(group).items()}.items():
        assert config[field] == value, field
    assert config["method"] == "simsiam" and config["backbone"] == "test_resnet"
    assert config["dataset"] == "photo-patches" and config["backbone_parameters"] > 300_000
    assert config["learning_rate"] == 0.1 and config["lr_schedule"] == "f1_clr" and config["seed"] == 42
    assert config["per_device_train_batch_size"] == 16 and config["output_dir"] == "my run"
    ours = json.dumps({key: value for key, value in config.items() if key != "_wandb"})
    assert TOKEN not in ours and str(Path.home()) not in ours and '"/' not in ours
    assert TOKEN.encode() not in next(cut.folder.glob("run-*.wandb")).read_bytes()


def test_the_artifact_is_the_backbone_alone(tracked):
    resumed, (_, rest, _) = tracked
    (artifact,) = rest.artifacts
    assert artifact.name == f"backbone-{rest.run.run_id}" and set(artifact.aliases) == {"final", "latest"}
    contents = {entry.path: entry for entry in artifact.manifest.contents}
    assert set(contents) == {"config.json", "model.safetensors"}
    assert json.loads(artifact.metadata)["step"] == 12 and "eval_knn_accuracy" in json.loads(artifact.metadata)
    with safe_open(contents["model.safetensors"].local_path, framework="pt") as weights:
        saved = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    backbone = resumed.model.backbone.state_dict()
    assert saved.keys() == backbone.keys() and all(torch.equal(saved[name], backbone[name]) for name in saved)


def test_the_config_tells_what_a_trainer_without_a_recipe_knows(tmp_path):
    images = patches("train", 32)
    trainer = SSLTrainer(
        SimSiam(build_backbone("test_resnet"), projector_dim=16),
        SSLTrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, hub_model_id="someone/x", seed=7),
        images,
        view_args=ViewArguments(resolution=32),
        data_args=DataArguments(dataset="/home/someone/pictures/cats", image_size=32),
    )
    config = run_config(trainer)
    assert config["method"] == "simsiam" and config["backbone"] == "test_resnet"
    assert config["dataset"] == images.name and config["seed"] == 7
    assert "someone" not in json.dumps(config) and str(tmp_path) not in json.dumps(config)
    assert yaml.safe_load(yaml.safe_dump(config)) == config  # plain values alone


def test_a_recipes_config_holds_every_field_of_the_recipe(tmp_path):
    from hf_essl.pretrain import build_trainer

    overrides = ["--output_dir", str(tmp_path / "r"), "--use_cpu", "--max_train_samples", "64", "--adam_beta1", "0.8"]
    recipe = load_recipe("recipes/quickstart/dino.yaml", [*overrides, "--max_eval_samples", "32"])
    config = run_config(build_trainer(recipe))
    written = yaml.safe_load(recipe.to_yaml()) | {"output_dir": "r", "dataloader_persistent_workers": False}
    left_out = {"use_cpu", "disable_tqdm"}
    assert {key: config.get(key, "missing") for key in written.keys() - left_out} == {
        key: value for key, value in written.items() if key not in left_out
    }


@pytest.mark.parametrize("name", integration_utils.INTEGRATION_TO_CALLBACK)
def test_a_tracker_that_is_not_installed_is_told_before_anything_is_loaded(name, monkeypatch):
    """Every tracker of the installed transformers; the names of packages on the index were written down by hand."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda module, package=None: None)
    monkeypatch.setattr(integration_utils, "_is_comet_installed", False)
    package = {"azure_ml": "azureml-core", "comet_ml": "comet-ml", "flyte": "flytekit"}.get(name, name)
    told = f"report_to is {name}, but {name} is not installed: pip install {package}"
    with pytest.raises(ValueError, match=f"^{told}$"):
        SSLTrainingArguments(report_to=name).check()


def test_an_unknown_tracker_is_told_with_those_that_exist():
    with pytest.raises(
        RecipeError, match=r"report_to is wandbb; choose all, none, or some of .*tensorboard, trackio, wandb"
    ):
        load_recipe("recipes/quickstart.yaml", ["--report_to", "wandbb"])
    assert load_recipe("recipes/quickstart.yaml", ["--report_to", "none"]).training.report_to == []


class StubbedWandb:
    """As much of the module as the callback touches, to see what is started and ended."""

    Error = wandb.Error
    Settings = wandb.Settings

    def __init__(self):
        self.run, self.events, self.config = None, [], {}

    def init(self, **settings):
        self.run = SimpleNamespace(summary={})
        self.events.append("init")
        return self.run

    def finish(self, exit_code=0):
        self.events.append(f"finish {exit_code}")
        self.run = None

    def define_metric(self, *args, **settings):
        pass


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return small_trainer(tmp_path_factory.mktemp("stubbed"))


@pytest.fixture
def stubbed(untrained, monkeypatch):
    stub = StubbedWandb()
    monkeypatch.setattr(untrained.alarm, "lost", None)

    def callback():
        own = WandbRunCallback(untrained)
        own._wandb = stub
        return own

    yield stub, callback
    WandbRunCallback._open = None


def begin(callback, step=0, main=True):
    state = TrainerState(global_step=step, is_world_process_zero=main)
    callback.on_train_begin(callback.run.args, state, TrainerControl(), model=callback.run.model)
    return state


def test_without_a_login_the_way_out_is_told(stubbed, monkeypatch):
    stub, callback = stubbed

    def refuse(**settings):
        raise wandb.errors.UsageError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setattr(stub, "init", refuse)
    with pytest.raises(ValueError, match=r"does not start: No API key configured.*WANDB_MODE=offline") as error:
        begin(callback())
    assert "\n" not in str(error.value)


def test_only_the_main_process_talks_to_wandb(stubbed):
    stub, callback = stubbed
    other = callback()
    state = begin(other, main=False)
    other.on_log(other.run.args, state, TrainerControl(), logs={"loss": 1.0})
    other.on_train_end(other.run.args, state, TrainerControl())
    assert stub.events == []


def test_a_run_that_an_exception_left_open_is_ended_as_failed(stubbed):
    stub, callback = stubbed
    begin(callback())
    begin(callback(), step=3)
    assert stub.events == ["init", "finish 1", "init"]


def test_a_run_of_the_users_own_is_taken_and_left_open(stubbed):
    stub, callback = stubbed
    stub.run = mine = SimpleNamespace(summary={})
    own = callback()
    state = begin(own)
    own.on_train_end(own.run.args, state, TrainerControl())
    assert stub.events == [] and stub.run is mine


def test_a_lost_run_ends_as_failed(stubbed):
    stub, callback = stubbed
    own = callback()
    state = begin(own)
    own.run.alarm.lost = "stopped"
    own.on_train_end(own.run.args, state, TrainerControl())
    assert stub.events == ["init", "finish 1"]


def test_tensorboard_gets_the_metrics_and_the_pictures(tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    small_trainer(
        tmp_path / "out", report_to="tensorboard", max_steps=4, num_train_epochs=1, warmup_epochs=0.25
    ).train()
    events = accumulator.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert {f"train/{name}" for name in STEP_METRICS if "probe" not in name} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Images("views")] == [1, 2, 3, 4]  # 32, 16, 24 and 32 px


def test_trackio_gets_the_recipe_the_metrics_and_the_pictures(tmp_path, monkeypatch):
    """A stand-in for its package, which the tests do not install."""
    rows, settings = [], {}
    trackio = types.ModuleType("trackio")
    trackio.init = lambda **given: settings.update(given)
    trackio.config = types.SimpleNamespace(update=lambda given, allow_val_change: settings.update(config=given))
    trackio.log, trackio.finish = rows.append, lambda: rows.append("finish")
    trackio.Image = lambda picture, caption: caption
    trackio.context_vars = types.SimpleNamespace(current_space_id=contextvars.ContextVar("space", default=None))
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: True)
    trainer = small_trainer(tmp_path / "out", report_to="trackio", project="patches", max_steps=2)
    trainer.train()
    assert settings["project"] == "patches" and settings["name"] == "out" and settings["config"] == run_config(trainer)
    assert [row["train/loss"] for row in rows[:-1] if "train/loss" in row] == [
        entry["loss"] for entry in trainer.state.log_history if "loss" in entry
    ]
    assert [row["views"].split(",")[0] for row in rows[:-1] if "views" in row] == ["32 px", "24 px"]
    assert rows[-1] == "finish"


def test_a_picture_takes_no_random_number_and_is_the_same_again():
    images = patches("train", 3).images
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    pictures = [tile_views(images, ViewArguments(resolution=32), 16, 5.0, seed=seed) for seed in (1, 1, 2)]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert pictures[0].dtype == np.uint8 and pictures[0].shape[2] == 3
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])


def test_running_means_by_hand():
    means = RunningMeans()
    for value in (1.0, 2.0, 6.0):
        means.add({"a": torch.tensor(value)})
    means.add({"b": torch.tensor(4, dtype=torch.bfloat16)})
    assert means.read() == {"a": 3.0, "b": 4.0} and means.read() == {}


def test_the_logged_parts_add_up_to_the_logged_loss(tmp_path):
    """Over two steps of two micro-batches, as the loss does."""
    accumulated = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "logging_steps": 2}
    trainer = small_trainer(tmp_path, method="simclr", max_steps=4, learning_rate=0.005, **accumulated)
    trainer.remove_callback(LogOftenCallback)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        assert entry["loss_alignment"] + entry["loss_uniformity"] == pytest.approx(entry["loss"], abs=2e-5)
