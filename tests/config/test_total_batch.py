"""A recipe states the images of a step; share per device and accumulation follow."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_essl.config import SSLTrainingArguments
from hf_essl.recipe import load_recipe
from hf_essl.reporting.costs import CostEstimator
from tests.helpers import small_trainer


def shared(monkeypatch, world, **fields):
    monkeypatch.setattr(SSLTrainingArguments, "world_size", world)
    training = SSLTrainingArguments(output_dir="x", use_cpu=True, **fields)
    return training.per_device_train_batch_size, training.gradient_accumulation_steps


@pytest.mark.parametrize(
    ("world", "total", "limit", "expected"),
    [(1, 512, 128, (128, 4)), (8, 512, 128, (64, 1)), (2, 96, 32, (24, 2)), (1, 7, 4, (1, 7)), (4, 64, 128, (16, 1))],
)
def test_shares_by_hand(world, total, limit, expected, monkeypatch):
    fields = {"total_batch_size": total, "per_device_train_batch_size": limit}
    assert shared(monkeypatch, world, **fields) == expected


@given(st.integers(1, 8), st.integers(1, 64), st.integers(1, 64))
def test_a_step_has_exactly_the_total(world, share, limit):
    with pytest.MonkeyPatch.context() as patch:
        fields = {"total_batch_size": world * share, "per_device_train_batch_size": limit}
        batch, passes = shared(patch, world, **fields)
    assert batch * passes * world == world * share and batch <= limit


def test_shares_that_cannot_be_equal_are_one_line(monkeypatch):
    with pytest.raises(
        ValueError, match="total_batch_size is 100, which 8 processes cannot share equally; choose 96 or 104"
    ):
        shared(monkeypatch, 8, total_batch_size=100)
    with pytest.raises(ValueError, match="gradient_accumulation_steps is 3 with total_batch_size: 128, which sets it"):
        shared(monkeypatch, 1, total_batch_size=128, gradient_accumulation_steps=3)


def test_built_twice_it_stays_the_same(monkeypatch):
    """transformers copies arguments by building them again from their fields."""
    first = SSLTrainingArguments(output_dir="x", use_cpu=True, total_batch_size=128, per_device_train_batch_size=32)
    names = ("total_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")
    fields = {name: getattr(first, name) for name in names}
    again = SSLTrainingArguments(output_dir="x", use_cpu=True, **fields)
    assert (again.per_device_train_batch_size, again.gradient_accumulation_steps) == (32, 4)


def test_the_papers_steps_do_not_depend_on_the_gpus():
    """ImageNet: 1,281,167 images in batches of 512 are 2,502 steps per epoch, 500,400 in 200 epochs."""
    recipe = load_recipe("imagenet/simsiam_resnet50_baseline", ["--use_cpu"])
    for processes in (1, 8):
        assert CostEstimator(1_281_167, processes).estimate(recipe)[1].steps == 500_400


@pytest.mark.parametrize(("method", "negatives"), [("simsiam", False), ("simclr", True)])
def test_what_accumulation_changes_is_told(method, negatives, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        small_trainer(tmp_path, method=method, total_batch_size=32, per_device_train_batch_size=8)
    assert "BatchNorm uses 8 of the 32 images of a step at a time" in caplog.text
    assert ("the negatives of the loss uses 8 of the 32" in caplog.text) == negatives
