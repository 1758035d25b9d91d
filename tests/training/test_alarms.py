"""Alarms: what they see in a log, what they say, and that a lost run ends with its work saved."""

import logging
import math

import pytest
import torch
from transformers import TrainerCallback

from hf_essl.common import Diverged
from hf_essl.methods import METHODS, SSLModel
from hf_essl.run_folder import checkpoints, last_complete_checkpoint
from hf_essl.training.alarms import find_trouble
from tests import fault_alarms
from tests.helpers import small_trainer


def model(method="simsiam"):
    return SSLModel.from_timm("test_resnet", method, method_args=METHODS[method].small_args)


def log(losses, spreads, first_step=50):
    return [
        {"step": first_step + i, "loss": loss, "embedding_spread": spread, "learning_rate": 0.1}
        for i, (loss, spread) in enumerate(zip(losses, spreads, strict=True))
    ]


def kinds(history, method="simsiam", **settings):
    return list(find_trouble(history, 100, model(method), **{"images": 16, "fp16": False, **settings}))


@pytest.mark.parametrize(
    ("losses", "spreads", "expected"),
    [
        ([-0.5] * 4, [0.9] * 4, []),
        ([-0.5] * 4, [0.9, 0.04, 0.04, 0.04], ["narrow"]),
        ([-0.5] * 4, [0.9, 0.04, 0.2, 0.04], []),  # three in a row are a trend
        ([-0.5] * 4, [0.01] * 4, ["collapsed"]),
        ([-0.9995] * 4, [0.9] * 4, ["trivial"]),
        ([-0.9995] * 4, [0.04] * 4, ["narrow", "trivial"]),
        ([-0.5] * 3 + [math.nan], [0.9] * 4, ["not finite"]),
        ([-0.5] * 3 + [-math.inf], [0.9] * 4, ["not finite"]),
    ],
)
def test_what_a_log_shows(losses, spreads, expected):
    assert kinds(log(losses, spreads)) == expected


def test_the_start_of_a_run_is_no_collapse():
    assert kinds(log([-0.999] * 4, [0.001] * 4, first_step=6)) == []  # steps 6 to 9 of 100
    assert kinds(log([math.nan], [0.9], first_step=1)) == ["not finite"]


@pytest.mark.parametrize(
    ("method", "loss"),
    [("byol", 0.0), ("simclr", math.log(31)), ("mocov2", math.log(41)), ("dino", math.log(32)), ("simsiam", -1.0)],
)
def test_the_loss_of_a_collapsed_network_is_known_for_each_method(method, loss):
    assert kinds(log([loss] * 3, [0.9] * 3), method) == ["trivial"]
    assert kinds(log([loss * 0.5 + 0.1] * 3, [0.9] * 3), method) == []


def test_a_falling_rank_is_told_with_both_numbers():
    history = [{"step": 0, "eval_rankme": 40.0}, {"step": 50, "eval_rankme": 12.0}]
    message = find_trouble(history, 100, model(), 16, False)["rank"]
    assert "40.0" in message and "12.0" in message and "learning_rate" in message


def ranked(losses, ranks):
    """A log that starts at loss 0 and rank 12."""
    first = {"step": 1, "loss": 0.0 if losses[0] < 0 else 4.0, "embedding_rank": 12.0}
    return [first, *({**e, "embedding_rank": r} for e, r in zip(log(losses, [0.8] * len(losses)), ranks, strict=True))]


@pytest.mark.parametrize(
    ("method", "losses", "ranks", "expected"),
    [
        ("simsiam", [-0.9, -0.6, -0.9], [2.0, 3.5, 2.0], ["flat"]),  # the mean of the losses counts
        ("simsiam", [-0.9] * 3, [2.0, 5.0, 2.0], []),  # three in a row
        ("simsiam", [-0.9] * 3, [6.0] * 3, []),  # a healthy run near its end
        ("simsiam", [-0.5] * 3, [2.0] * 3, []),  # few dimensions, and yet far from the trivial loss
        ("byol", [0.4] * 3, [2.0] * 3, ["flat"]),
        ("dino", [3.4] * 3, [2.0] * 3, []),  # healthy: its loss does not reward a collapse
    ],
)
def test_a_collapse_onto_few_dimensions(method, losses, ranks, expected):
    assert kinds(ranked(losses, ranks), method) == expected
    older = [
        {key: value for key, value in entry.items() if key != "embedding_rank"} for entry in ranked(losses, ranks)
    ]
    assert kinds(older, method) == [], "the log of an earlier version has no rank"


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", ["no_stopped_gradient", "no_predictor"])
def test_simsiam_without_what_prevents_its_collapse_is_told(sabotage):
    (line,) = fault_alarms.alarms_of("simsiam", 0, getattr(fault_alarms, sabotage))
    assert "the embedding's effective rank fell from" in line and "fix_predictor_lr" in line


def test_a_student_may_have_the_lower_rank_of_its_teacher():
    """The quickstart's student falls from 16.2 to 8.2, and ends at the teacher's accuracy."""
    history = [{"step": 0, "eval_rankme": 16.2}, {"step": 50, "eval_rankme": 8.2}]
    assert "rank" in find_trouble(history, 100, model(), 16, False)
    assert find_trouble(history, 100, model("distill"), 16, False) == {}
    history[-1]["eval_rankme"] = 3.0
    assert "another teacher" in find_trouble(history, 100, model("distill"), 16, False)["rank"]


def test_causes_are_named():
    messages = find_trouble(log([math.nan], [0.9]), 100, model(), 16, fp16=True)
    assert messages["not finite"] == "the loss is nan; lower learning_rate (now 0.1), or use bf16 instead of fp16"
    hints = {method: model(method).collapse_hint for method in METHODS}
    assert len(set(hints.values())) == len(METHODS) and all("learning_rate" in hint for hint in hints.values())


class Sabotage(TrainerCallback):
    """Breaks the model after a step."""

    def __init__(self, step, value):
        self.step, self.value = step, value

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step >= self.step:
            with torch.no_grad():
                for p in model.projector.parameters():
                    p.fill_(self.value)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, caplog):
    settings = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    trainer = small_trainer(tmp_path, callbacks=[Sabotage(5, math.nan)], **settings)
    with caplog.at_level(logging.WARNING), pytest.raises(Diverged, match=r"stopped at step 6: the loss is nan; lower"):
        trainer.train()
    assert trainer.state.global_step == 6
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-2"]
    assert "no checkpoint is saved because weights are not finite" in caplog.text
    resumed = small_trainer(tmp_path, **settings)  # a lower learning rate would go here
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 12


def test_a_collapsed_embedding_stops_the_run_with_a_checkpoint(tmp_path):
    trainer = small_trainer(tmp_path, method="mocov2", callbacks=[Sabotage(1, 0.1)], learning_rate=1e-9)
    with pytest.raises(Diverged, match=r"stopped at step 4: the embedding has collapsed to a point \(spread 0\.000"):
        trainer.train()
    assert last_complete_checkpoint(tmp_path).endswith("checkpoint-4")


def test_a_warning_goes_on_and_is_given_once(tmp_path, caplog):
    trainer = small_trainer(
        tmp_path, method="mocov2", callbacks=[Sabotage(1, 0.1)], learning_rate=1e-9, on_divergence="warn"
    )
    with caplog.at_level(logging.WARNING, logger="hf_essl.training.alarms"):
        trainer.train()
    assert trainer.state.global_step == 12
    assert sum("collapsed to a point" in record.message for record in caplog.records) == 1


def test_a_healthy_run_raises_no_alarm(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_essl.training.alarms"):
        small_trainer(tmp_path, learning_rate=0.02).train()
    assert not [record for record in caplog.records if record.name == "hf_essl.training.alarms"]
