from types import SimpleNamespace

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_essl.config import ViewArguments
from hf_essl.schedules import Curriculum, SuperProgressiveCallback


class TinyModel(torch.nn.Module):
    """Records the settings of the views at each forward pass."""

    def __init__(self, views):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.views = views
        self.seen = []

    def forward(self, x):
        self.seen.append((self.views.resolution, self.views.magnitude))
        return {"loss": (self.weight * x).mean()}


def _trainer(folder, accumulation=1):
    views = SimpleNamespace(resolution=None, magnitude=None)
    view_args = ViewArguments(
        min_resolution=96, resolution_schedule="super_progressive", min_magnitude=4, max_magnitude=6
    )
    model = TinyModel(views)
    args = TrainingArguments(
        str(folder), max_steps=12, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation,
        save_steps=5, logging_strategy="no", disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
    )  # fmt: skip
    callback = SuperProgressiveCallback(views, Curriculum.with_warmup(view_args, 20 / 120))
    data = [{"x": torch.ones(1)} for _ in range(16)]
    return Trainer(model, args, train_dataset=data, callbacks=[callback]), model


EXPECTED = [224] * 2 + [96] * 2 + [128] * 2 + [160] * 2 + [192] * 2 + [224] * 2  # 2 of 12 steps are warm-up


@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_batch_of_a_step_has_its_resolution_and_magnitude(tmp_path, accumulation):
    trainer, model = _trainer(tmp_path, accumulation)
    trainer.train()
    assert [resolution for resolution, _ in model.seen[::accumulation]] == EXPECTED
    assert [magnitude for _, magnitude in model.seen[::accumulation]] == pytest.approx([4 + k / 6 for k in range(12)])
    assert model.seen[::accumulation] == model.seen[accumulation - 1 :: accumulation]


def test_a_resumed_run_continues_with_the_new_views(tmp_path):
    _trainer(tmp_path)[0].train()
    trainer, model = _trainer(tmp_path)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert [resolution for resolution, _ in model.seen] == EXPECTED[5:]
    assert model.seen[0][1] == pytest.approx(4 + 5 / 6)
