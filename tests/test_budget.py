"""`--budget`: epochs from time, petaFLOPs or epochs."""

import json

import pytest

from hf_essl import budget as module
from hf_essl import cli
from hf_essl.budget import Budget, Speed, fit_budget, measure, with_epochs
from hf_essl.recipe import RecipeError, load_recipe
from hf_essl.reporting.costs import CostEstimator
from tests.helpers import small_trainer

WORDS = ["--use_cpu", "--num_train_epochs", "12", "--warmup_epochs", "2", "--knn_every_epochs", "3"]


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("30min", 1800, "seconds"), ("2h", 7200, "seconds"), ("90s", 90, "seconds"), ("1.5 h", 5400, "seconds"),
        ("5pF", 5, "pF"), ("300epochs", 300, "epochs"),
    ],
)  # fmt: skip
def test_amounts(text, amount, unit):
    assert Budget.parse(text) == Budget(amount, unit)


@pytest.mark.parametrize("text", ["", "3", "min", "-2h", "0min", "2 days", "5PF", "1e3s"])
def test_other_texts_are_one_line(text):
    with pytest.raises(RecipeError, match=r"budget is .*; write a time, petaFLOPs or epochs: 30min"):
        Budget.parse(text)


def test_epochs_keep_the_proportions():
    recipe = load_recipe("quickstart", WORDS)
    longer = with_epochs(recipe, 36, 12).training
    assert (longer.num_train_epochs, longer.warmup_epochs, longer.knn_every_epochs) == (36, 6, 9)
    assert longer.logging_steps == 3 * recipe.training.logging_steps
    fitted, images, _ = fit_budget(recipe, Budget.parse("36epochs"))
    assert images is None and fitted.training.num_train_epochs == 36


def test_the_warmup_keeps_its_share_if_max_steps_ends_the_run():
    recipe = load_recipe("quickstart", [*WORDS, "--max_steps", "100"])
    before = recipe.training.warmup_epochs / recipe.training.num_train_epochs
    fitted, _, _ = fit_budget(recipe, Budget(0.005, "pF"))
    assert fitted.training.max_steps == -1
    assert fitted.training.warmup_epochs / fitted.training.num_train_epochs == pytest.approx(before, rel=0.01)
    _, cost = CostEstimator().estimate(fitted)
    assert cost.counted_petaflops == pytest.approx(0.005, rel=0.05)


IMAGES = "{teacher: test_vit, teacher_pretrained: false, teacher_resolution: 160, teacher_sees: images}"


@pytest.mark.parametrize("words", [[], ["--method", "distill", "--method_args", IMAGES]])
def test_petaflops_are_those_of_the_cost_model(words):
    """Also with a teacher whose part does not grow with the epochs."""
    recipe = load_recipe("quickstart", [*WORDS, *words])
    fitted, _, _ = fit_budget(recipe, Budget(0.05, "pF"))
    _, cost = CostEstimator().estimate(fitted)
    assert cost.counted_petaflops == pytest.approx(0.05, rel=0.01)


def test_a_time_by_hand(monkeypatch):
    """Of 230 s, 13 s are over, 3 s + 7 steps of 2 s remain for the end and 4 evaluations of 2 s leave 192 s.

    64 steps of 0.5 s are 32 s per epoch: 6 epochs, evaluated at 0, 2, 4 and 6.
    """
    reports = []
    monkeypatch.setattr(module, "build_trainer", lambda recipe, images: reports.append(recipe.training.report_to))
    monkeypatch.setattr(module, "measure", lambda trainer: Speed(step=0.5, full_step=2.0, evaluation=2.0))
    monkeypatch.setattr(module, "_seconds_so_far", lambda: 13.0)
    recipe = load_recipe("quickstart", [*WORDS, "--max_eval_samples", "16", "--report_to", "tensorboard"])
    fitted, images, why = fit_budget(recipe, Budget(230, "seconds"))
    assert fitted.training.num_train_epochs == 6 and images is not None
    assert reports == [[]] and fitted.training.report_to == ["tensorboard"], "measuring starts no tracker"
    assert "32 s per epoch and 4 evaluations of 2 s" in why and "30 s for the start and the end" in why
    with pytest.raises(RecipeError, match="too small for one epoch"):
        fit_budget(recipe, Budget(60, "seconds"))


def test_measuring_leaves_the_run_as_it_was(tmp_path):
    """Steps and evaluation are timed on a copy: the weights of the trainer do not change."""
    trainer = small_trainer(tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    speed = measure(trainer)
    assert speed.step > 0 and speed.evaluation > 0
    assert all((value == before[name]).all() for name, value in trainer.model.state_dict().items())


@pytest.mark.slow
def test_the_command_trains_within_its_petaflops(tmp_path, capsys):
    words = ["--max_train_samples", "128", "--max_eval_samples", "32", "--knn_k", "3", "--measure_speedup", "false"]
    command = ["pretrain", "quickstart", *WORDS, *words, "--output_dir", str(tmp_path), "--budget", "0.0005pF"]
    assert cli.main(command) == 0
    assert "budget 0.0005pF: " in capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["petaflops"] == pytest.approx(0.0005, rel=0.15)  # a step is 5 % of it
    assert cli.main([*command, "--resume_from_checkpoint", "true"]) == 2
    assert "the run has its length already" in capsys.readouterr().err
