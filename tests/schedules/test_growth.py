"""Batches that train as one at low resolution: which ones, at what learning rate, and none is lost."""

import signal

import pytest
import torch
from transformers import TrainerCallback

from hf_essl.schedules import BatchGrowth
from tests.helpers import patches, small_trainer

SETTINGS = {"batch_growth": 4, "logging_steps": 6, "views": {"resolution_step": 16}}


def test_groups_by_hand():
    """Four steps at 64 px, eight at 16, eight at 32; at most four batches, and an end before step 10."""
    pixels = [64] * 4 + [16] * 8 + [32] * 8
    growth = BatchGrowth(lambda progress: pixels[round(20 * progress)], 4, 20, lambda step: step == 10)
    assert growth.sizes == [1] * 4 + [4] * 4 + [2] * 4 + [4] * 8
    trains = [step for step in range(20) if not growth.waits(step)]
    assert trains == [0, 1, 2, 3, 7, 9, 11, 15, 19]


def test_a_group_is_as_large_as_its_views_are_small():
    growth = BatchGrowth(lambda progress: 128, 8, 10, lambda step: False)
    assert growth.sizes == [1] * 10
    growth = BatchGrowth(lambda progress: 224 if progress < 0.5 else 128, 8, 10, lambda step: False)
    assert growth.sizes == [1] * 5 + [3] * 3 + [2] * 2  # (224 / 128)^2 is 3.06; the run ends
    growth = BatchGrowth(lambda progress: 224 if progress < 0.5 else 112, 8, 12, lambda step: False)
    assert growth.sizes == [1] * 6 + [4] * 4 + [2] * 2


class Seen(TrainerCallback):
    """What each forward pass that trains took, and the learning rate and momentum of its step."""

    def __init__(self):
        self.passes, self.images = [], []

    def watch(self, trainer):
        self.trainer = trainer
        trainer.model.register_forward_pre_hook(self._note, with_kwargs=True)
        make_views = trainer.make_views

        def noting(images):
            self.images.append(images.clone())
            return make_views(images)

        trainer.make_views = noting
        return self

    def _note(self, model, args, kwargs):
        group = self.trainer.optimizer.param_groups[0]
        step = self.trainer.state.global_step
        self.passes.append((step, *kwargs["first"].shape[::3], group["lr"], group["momentum"]))


def test_a_run_trains_on_every_image_once_an_epoch_at_the_noise_scale_of_the_recipe(tmp_path):
    grown, plain = (small_trainer(tmp_path, **{**SETTINGS, "batch_growth": n}) for n in (4, 1))
    seen, single = Seen().watch(grown), Seen().watch(plain)
    for trainer in (grown, plain):
        trainer.train()
    # 12 steps: a quarter of warm-up at 32 px, then 16 px up to step 7.5, then 32 px; it logs at 6 and 12
    assert [(step, n, px) for step, n, px, *_ in seen.passes] == [
        (0, 16, 32), (1, 16, 32), (2, 16, 32), (5, 48, 16), (7, 32, 16), (8, 16, 32), (9, 16, 32), (10, 16, 32),
        (11, 16, 32),
    ]  # fmt: skip
    noise = {step: lr / (16 * (1 - momentum)) for step, _, _, lr, momentum in single.passes}
    for step, images, _, lr, momentum in seen.passes:
        assert lr / (images * (1 - momentum)) == pytest.approx(noise[step])
    order, other = (torch.cat(one.images) for one in (seen, single))
    assert torch.equal(order, other) and len(order) == 2 * 96  # the same images in the same order
    assert grown.state.global_step == 12 and grown.state.total_flos == plain.state.total_flos


def test_the_logged_loss_is_the_mean_over_the_images(tmp_path):
    trainer, losses = small_trainer(tmp_path, **SETTINGS), []
    trainer.model.register_forward_hook(lambda model, args, out: losses.append(out["loss"].detach()))
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(
        [torch.cat(losses[:4]).mean().item(), torch.cat(losses[4:]).mean().item()], abs=1e-5
    )


class Signal(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("method", ["byol", "mocov2"])
def test_interrupted_while_a_batch_waits_it_resumes_bit_for_bit(tmp_path, method):
    whole = small_trainer(tmp_path / "whole", method=method, **SETTINGS)
    cut = small_trainer(tmp_path / "cut", method=method, callbacks=[Signal(3)], **SETTINGS)
    whole.train()
    cut.train()
    assert cut.state.global_step == 6  # the group of steps 3 to 5 has trained
    resumed = small_trainer(tmp_path / "cut", method=method, **SETTINGS)
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_growth": 0}, "batch_growth is 0; it is a number of batches from 1 on"),
        (
            {"batch_growth": 4, "gradient_accumulation_steps": 2},
            "batch_growth is 4 with gradient_acc",
        ),
    ],
)
def test_bad_values_are_one_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        small_trainer(tmp_path, train=patches("train", 32), **changes)
