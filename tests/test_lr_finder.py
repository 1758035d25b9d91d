"""The range test: where it looks, what it finds on a loss that is known, and that it leaves everything as it was."""

import itertools
import math

import pytest
import torch

from hf_essl import lr_range_test
from hf_essl.lr_finder import LRRange, suggest
from hf_essl.training.step import run_step
from tests.helpers import small_trainer


def test_model_and_random_numbers_are_left_as_they_were(tmp_path):
    trainer = small_trainer(tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    generator = torch.get_rng_state()
    result = lr_range_test(trainer, steps=12, validation_images=32)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert trainer.optimizer is None
    assert len(result.train_losses) == len(result.validation_losses) == len(result.learning_rates) == 12
    assert not result.ended_early
    assert all(math.isfinite(loss) for loss in result.validation_losses)


def test_rates_grow_by_a_constant_factor_from_start_to_end(tmp_path):
    rates = lr_range_test(small_trainer(tmp_path), start=1e-3, end=1.0, steps=13, validation_images=0).learning_rates
    assert rates[0] == pytest.approx(1e-3) and rates[-1] == pytest.approx(1.0)
    assert rates[4] == pytest.approx(1e-2) and rates[8] == pytest.approx(1e-1)


@pytest.mark.parametrize("optim", ["sgd", pytest.param("lars", marks=pytest.mark.slow)])
def test_dinos_last_layer_trains_and_tau_keeps_its_initial_value(tmp_path, monkeypatch, optim):
    seen = []

    def recorded(model, *args, **kwargs):
        loss = run_step(model, *args, **kwargs)
        seen.append((model.projector[-1].weight.detach().clone(), model.momentum))
        return loss

    monkeypatch.setattr("hf_essl.lr_finder.run_step", recorded)
    trainer = small_trainer(tmp_path, method="dino", optim=optim)
    start = trainer.model.projector[-1].weight.detach()
    lr_range_test(trainer, steps=10, validation_images=0)
    weights = [start, *(weight for weight, _ in seen)]
    assert len(weights) == 11
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(weights))
    assert [tau for _, tau in seen] == [0.996] * 10


@pytest.mark.parametrize("method", ["simsiam", "byol", "simclr", "mocov2", "dino"])
def test_the_loss_does_not_drift_while_the_weights_stay(tmp_path, method):
    """At negligible rates, so the first steps see the same queue and center as the last ones."""
    trainer = small_trainer(tmp_path, method=method)
    found = lr_range_test(trainer, start=1e-12, end=1e-11, steps=24, validation_images=0)
    losses = torch.tensor(found.train_losses)
    first, last = losses[:8], losses[-12:]
    assert (first.mean() - last.mean()).abs() < 3 * last.std() / 8**0.5


def test_a_suggestion_at_an_end_of_the_range_is_told():
    words = [LRRange([0.1, 0.2, 0.4], [], [], rate).remark for rate in (0.1, 0.2, 0.4)]
    assert words == [
        "the loss only rises from here; lower --start",
        "the loss has reached its plateau here",
        "the loss still falls here, at the end of the range; raise --end",
    ]
    stopped = LRRange([0.1, 0.2], [], [], 0.2, ended_early=True)
    assert stopped.remark == "the loss still falls here, and is not finite above"


def test_a_loss_that_is_not_finite_ends_the_test(tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 1.0, math.nan])
    monkeypatch.setattr("hf_essl.lr_finder.run_step", lambda *args, **kwargs: torch.tensor(next(losses)))
    found = lr_range_test(small_trainer(tmp_path), steps=12, validation_images=0)
    assert found.ended_early and found.train_losses == [3.0, 2.0, 1.0] and len(found.learning_rates) == 3


@pytest.mark.parametrize("each", [False, True])
def test_gradients_are_clipped_as_in_the_training(tmp_path, monkeypatch, each):
    """The step of plain SGD from the same weights is the learning rate times the gradient."""
    norms = []

    def recorded(model, views, optimizer, **options):
        before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        loss = run_step(model, views, optimizer, **options)
        now, rate = [p.detach() for p in model.parameters() if p.requires_grad], optimizer.param_groups[0]["lr"]
        norms.append([((b - n) / rate).norm().item() for b, n in zip(before, now, strict=True)])
        return loss

    monkeypatch.setattr("hf_essl.lr_finder.run_step", recorded)
    settings = {"max_grad_norm": 0.05, "clip_each_parameter": each, "weight_decay": 0.0, "momentum": 0.0}
    lr_range_test(small_trainer(tmp_path, **settings), start=0.1, steps=10, validation_images=0)
    for step in norms:
        together = math.hypot(*step)
        assert max(step) < 0.0501 and (together > 0.1 if each else together == pytest.approx(0.05, rel=0.01))


def test_suggestion_is_where_the_loss_reaches_its_plateau():
    rates = [10 ** (-3 + step / 50) for step in range(151)]  # 1e-3 to 1
    losses = [0.0 if r < 0.01 else -min(1.0, math.log10(r / 0.01)) + max(0.0, math.log10(r / 0.5)) for r in rates]
    assert 0.08 < suggest(rates, losses) < 0.2  # it falls from 0.01 on, is flat from 0.1, and rises from 0.5


def test_suggestion_does_not_follow_a_plateau_that_goes_on_falling():
    rates = [10 ** (-3 + step / 50) for step in range(151)]
    losses = [-min(1.0, max(0.0, math.log10(r / 0.01))) - 0.3 * max(0.0, math.log10(r / 0.1)) for r in rates]
    assert 0.08 < suggest(rates, losses) < 0.2


def test_suggestion_without_a_plateau_is_the_lowest_loss():
    rates = [10 ** (-3 + step / 50) for step in range(151)]
    falling = [-(step**2) for step in range(151)]
    assert suggest(rates, falling) == rates[-1]
    assert suggest(rates, [*falling[:100], *range(51)]) == rates[99]
    assert suggest(rates, list(range(151))) == rates[0]


@pytest.mark.parametrize("settings", [{"start": 1.0, "end": 0.1}, {"start": 2.0}, {"steps": 3}])
def test_a_range_that_is_none_is_told(tmp_path, settings):
    with pytest.raises(ValueError, match="0 < start < end and 10 steps or more"):
        lr_range_test(small_trainer(tmp_path), **settings)
