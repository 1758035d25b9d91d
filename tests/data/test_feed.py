"""How batches reach a training: workers and exact resume, every cache alike, and the copy to the device."""

import os

import psutil
import pytest
import torch
from torch import nn

from hf_essl.data import DecodedImages, Feed
from hf_essl.data.dataset import Items
from hf_essl.data.disk_cache import disk_cache
from tests.helpers import patches, small_trainer
from tests.test_trainer import StopAfter, Uncached


class WhoLoads(torch.utils.data.Dataset):
    """Images labeled by the process that loads them."""

    targets = torch.zeros(32)

    def __len__(self):
        return 32

    def __getitem__(self, index):
        return torch.zeros(3, 32, 32, dtype=torch.uint8), os.getpid()


def test_workers_stay_from_epoch_to_epoch(tmp_path):
    loader = small_trainer(tmp_path, train=WhoLoads(), dataloader_num_workers=2).get_train_dataloader()
    first, second = ({int(pid) for batch in loader for pid in batch["label"]} for _ in range(2))
    assert len(first) == 2 and os.getpid() not in first
    assert first == second


@pytest.mark.slow
def test_workers_end_with_the_training(tmp_path):
    trainer = small_trainer(tmp_path, train=Uncached(patches("train", 96)), dataloader_num_workers=1, max_steps=2)
    trainer.train()
    assert trainer.args.dataloader_persistent_workers
    assert not [child for child in psutil.Process().children() if child.name().startswith("pt_")]


@pytest.mark.slow
def test_resumed_between_epochs_with_dropout_and_workers(tmp_path):
    """Dropout draws from torch's global generator, which restarted workers must not advance."""

    def trainer(folder, **options):
        made = small_trainer(folder, train=Uncached(patches("train", 96)), dataloader_num_workers=1, **options)
        made.model.projector = nn.Sequential(nn.Dropout(0.5), made.model.projector)
        return made

    whole, cut = trainer(tmp_path / "whole"), trainer(tmp_path / "cut", callbacks=[StopAfter(6)])
    for one in (whole, cut):
        torch.manual_seed(7)
        one.train()
    resumed = trainer(tmp_path / "cut")
    torch.manual_seed(1234)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 12
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


@pytest.mark.slow
def test_every_cache_trains_alike(tmp_path):
    """Decoded each time by workers, in memory, and on disk: the weights are equal bit for bit."""
    images = Uncached(patches("train", 96))
    images.fingerprint = "96 patches"
    decoded = DecodedImages(Items(images, "image", "label"), 32)
    runs = {
        "workers": {"train": images, "dataloader_num_workers": 2},
        "memory": {"train": patches("train", 96)},
        "disk": {"train": disk_cache(decoded, tmp_path / "cache", 0.0), "dataloader_num_workers": 1},
    }
    states = []
    for name, settings in runs.items():
        trainer = small_trainer(tmp_path / name, max_steps=8, **settings)
        trainer.train()
        states.append(trainer.model.state_dict())
    for state in states[1:]:
        assert all(torch.equal(value, state[name]) for name, value in states[0].items())


def test_a_feed_moves_only_tensors():
    batch = {"image": torch.ones(2, 3, 4, 4, dtype=torch.uint8), "label": torch.tensor([1, 2]), "unreadable": ["x"]}
    moved = Feed(torch.device("cpu"))(batch)
    assert moved["unreadable"] == ["x"] and moved["image"] is batch["image"] and moved["label"] is batch["label"]
