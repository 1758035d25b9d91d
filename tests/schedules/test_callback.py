from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_essl.config import SSLTrainingArguments, ViewArguments
from hf_essl.schedules import SuperProgressiveCallback


class TinyModel(torch.nn.Module):
    """Notes what the views are set to at each forward pass."""

    def __init__(self, views):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.views = views
        self.seen = []

    def forward(self, x):
        self.seen.append((self.views.resolution, self.views.magnitude))
        return {"loss": (self.weight * x).mean()}


def _trainer(folder, epochs_args, accumulation=1, max_steps=12):
    views = SimpleNamespace(resolution=None, magnitude=None)
    view_args = ViewArguments(
        min_resolution=96, resolution_schedule="super_progressive", min_magnitude=4, max_magnitude=6
    )
    model = TinyModel(views)
    args = TrainingArguments(
        str(folder), max_steps=max_steps, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation,
        save_steps=5, logging_strategy="no", disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
    )  # fmt: skip
    callback = SuperProgressiveCallback.from_args(views, view_args, epochs_args)
    data = [{"x": torch.ones(1)} for _ in range(16)]
    return Trainer(model, args, train_dataset=data, callbacks=[callback]), model


@pytest.fixture
def schedule_args():
    return SSLTrainingArguments(lr_schedule="f1_clr", num_train_epochs=120, warmup_epochs=20, use_cpu=True)


EXPECTED = [224] * 2 + [96] * 2 + [128] * 2 + [160] * 2 + [192] * 2 + [224] * 2  # 2 of 12 steps are warm-up


def test_every_step_of_a_trainer_run_sees_its_resolution_and_magnitude(tmp_path, schedule_args):
    trainer, model = _trainer(tmp_path, schedule_args)
    trainer.train()
    assert [resolution for resolution, _ in model.seen] == EXPECTED
    assert [magnitude for _, magnitude in model.seen] == pytest.approx([4 + step / 6 for step in range(12)])


def test_the_micro_steps_of_one_optimizer_step_share_them(tmp_path, schedule_args):
    trainer, model = _trainer(tmp_path, schedule_args, accumulation=2)
    trainer.train()
    assert [resolution for resolution, _ in model.seen] == [size for size in EXPECTED for _ in range(2)]


def test_a_resumed_run_continues_with_the_views_of_the_new_process(tmp_path, schedule_args):
    _trainer(tmp_path, schedule_args)[0].train()
    trainer, model = _trainer(tmp_path, schedule_args)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert [resolution for resolution, _ in model.seen] == EXPECTED[5:]
    assert model.seen[0][1] == pytest.approx(4 + 5 / 6)
