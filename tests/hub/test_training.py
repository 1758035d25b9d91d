"""Runs that push: at the end, at every save, with the method's state; refused before work, and a Hub that fails."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file

from hf_essl import SSLTrainingArguments, cli
from hf_essl.hub.hub_errors import HubError
from hf_essl.pretrain import pretrain
from hf_essl.recipe import load_recipe
from tests.helpers import small_trainer
from tests.hub.test_push import check_nothing_leaked, stored

ROOT = Path(__file__).parents[2]
SMALL = """
    --max_train_samples 64 --max_eval_samples 16 --max_steps 2 --logging_steps 1 --save_strategy steps --save_steps 1
    --image_size 32 --resolution 32 --min_resolution 16 --resolution_step 16 --selection_resolution 16 --num_views 3
    --per_device_train_batch_size 16 --use_cpu true --measure_speedup false --disable_tqdm true
    --push_to_hub true --hub_model_id ada/net
""".split()


def run_recipe(folder, *words):
    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml", [*SMALL, "--output_dir", str(folder), *words])
    return pretrain(recipe)


def commits(hub, name="ada/net"):
    return hub.repositories[name].branches["main"][1:]


def test_pushed_once_at_the_end(hub, tmp_path, capsys):
    run_recipe(tmp_path / "run", "--hub_strategy", "end")
    assert [commit.message for commit in commits(hub)] == ["End of training"]
    assert {"config.json", "model.safetensors"} <= set(stored(hub)) <= {
        "config.json", "model.safetensors", "README.md", "curves.png", "neighbors.png", "views.png",
    }  # fmt: skip
    assert stored(hub)["model.safetensors"] == (tmp_path / "run" / "backbone" / "model.safetensors").read_bytes()
    out = capsys.readouterr().out
    assert out.rstrip().endswith(f"pushed to {hub.url}/ada/net")
    check_nothing_leaked(hub)


def test_pushed_at_every_save_with_the_weights_of_that_step(hub, tmp_path):
    run_recipe(tmp_path / "run", "--hub_strategy", "every_save", "--hub_always_push", "true")
    messages = ["Training in progress, step 1", "Training in progress, step 2", "End of training"]
    assert [commit.message for commit in commits(hub)][:2] == messages[:2]
    for step, commit in zip((1, 2), commits(hub), strict=False):
        state = load_file(tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors")
        pushed = load(commit.files["model.safetensors"].content)
        assert pushed and all(torch.equal(value, state[f"backbone.{name}"]) for name, value in pushed.items())
    first, second = (load(commit.files["model.safetensors"].content) for commit in commits(hub)[:2])
    assert not torch.equal(first["conv1.0.weight"], second["conv1.0.weight"])
    assert not list((tmp_path / "run").glob(".push-*"))
    check_nothing_leaked(hub)


def test_checkpoint_pushes_the_state_of_the_method_without_a_pickle(hub, tmp_path):
    settings = {"push_to_hub": True, "hub_model_id": "ada/net", "hub_strategy": "checkpoint", "hub_always_push": True}
    trainer = small_trainer(
        tmp_path / "run", max_steps=2, num_train_epochs=1, save_strategy="steps", save_steps=1, **settings
    )
    trainer.train()
    assert [commit.message for commit in commits(hub)] == [f"Training in progress, step {step}" for step in (1, 2)]
    for step, commit in zip((1, 2), commits(hub), strict=True):
        assert sorted(commit.files) == ["config.json", "model.safetensors", "ssl/model.safetensors"]
        state = tmp_path / "run" / f"checkpoint-{step}" / "model.safetensors"
        assert commit.files["ssl/model.safetensors"].content == state.read_bytes()
    check_nothing_leaked(hub)


@pytest.mark.parametrize(
    ("status", "message"), [(401, r"does not accept the token"), (403, r"does not let this token write to ada/net")]
)
def test_a_rejected_token_is_reported_before_any_work(hub, tmp_path, monkeypatch, status, message):
    monkeypatch.setattr("hf_essl.pretrain.build_trainer", lambda _: pytest.fail("it went to work"))
    hub.fail(r"POST /api/repos/create", status)
    with pytest.raises(HubError, match=message):
        run_recipe(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_hub_that_is_down_costs_no_result(hub, tmp_path, caplog, capsys):
    hub.fail(r".*", 503)
    with caplog.at_level(logging.WARNING):
        metrics = run_recipe(tmp_path / "run", "--hub_strategy", "every_save")
    assert metrics["steps"] == 2 and json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 2
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("hf_essl.hub")]
    assert (
        "the Hub does not accept ada/net now (503, out of order); try again later; training continues" in warnings[0]
    )
    assert [text for text in warnings if text.startswith("a checkpoint was not pushed, training continues: ")]
    assert warnings[-1].startswith(
        "the run is finished and saved, but not pushed: the Hub does not accept ada/net now (503"
    )
    assert f"push it later with `hf-essl push {tmp_path / 'run'} --repo_id ada/net`" in warnings[-1]
    assert "pushed to" not in capsys.readouterr().out and not hub.repositories
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
    hub.mend()
    assert cli.main(["push", str(tmp_path / "run"), "--repo_id", "ada/net"]) == 0
    assert stored(hub)["model.safetensors"] == (tmp_path / "run" / "backbone" / "model.safetensors").read_bytes()


def test_the_trainer_of_the_python_api_pushes_its_backbone(hub, tmp_path):
    trainer = small_trainer(tmp_path / "python", hub_model_id="ada/python", hub_private_repo=True)
    assert trainer.push_to_hub("By hand", revision="trial") == f"{hub.url}/ada/python/tree/trial"
    repository = hub.repositories["ada/python"]
    assert repository.private and repository.commit("trial").message == "By hand"
    pushed = load(repository.files("trial")["model.safetensors"].content)
    assert torch.equal(pushed["conv1.0.weight"], trainer.model.backbone.conv1[0].weight)
    assert (tmp_path / "python" / "backbone" / "config.json").is_file()
    check_nothing_leaked(hub)


def test_saving_by_hand_pushes_as_in_transformers_but_no_training_arguments(hub, tmp_path):
    trainer = small_trainer(tmp_path / "python", push_to_hub=True, hub_model_id="ada/python")
    trainer.save_model()
    assert (tmp_path / "python" / "training_args.bin").is_file()
    assert sorted(stored(hub, "ada/python")) == ["config.json", "model.safetensors"]
    check_nothing_leaked(hub)


def test_a_collapsed_backbone_is_not_pushed_over_a_good_one(hub, tmp_path, monkeypatch):
    trainer = small_trainer(tmp_path / "python", push_to_hub=True, hub_model_id="ada/python")
    trainer.alarm.lost = "the embedding has collapsed to a point"
    trainer._push_from_checkpoint(str(tmp_path / "python" / "checkpoint-1"))
    trainer._finish_current_push()
    assert not commits(hub, "ada/python")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"hub_token": "secret"},
            "hub_token is set, which is refused: it would be stored in every checkpoint; set HF_TOKEN",
        ),
        (
            {"hub_strategy": "all_checkpoints"},
            "hub_strategy is all_checkpoints, which would push pickles; choose",
        ),
    ],
)
def test_arguments_that_would_push_too_much(given, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        SSLTrainingArguments(output_dir=str(tmp_path), **given).check()
    assert "secret" not in str(caught.value)
