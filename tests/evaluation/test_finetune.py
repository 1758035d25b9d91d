"""Fine-tuning: it learns, trains the whole backbone, repeats, and changes nothing else."""

import sys

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn

from hf_essl.data import CachedImages
from hf_essl.evaluation.backbone import LoadedBackbone
from hf_essl.evaluation.finetune import FinetuneSettings, _shares, evaluate_finetune
from hf_essl.evaluation.task import Task
from tests.distributed.launch import launch

HALF = (0.5, 0.5, 0.5)


def finetune(backbone, train, test, *, resolution=32, accelerator=None, epochs=1, optimizer="sgd", rate=None, **task):
    """The accuracy after fine-tuning; `task` is for `Task`."""
    loaded = LoadedBackbone(backbone, resolution, HALF, HALF)
    task = {"batch_size": 128, "report": lambda line: None} | task
    task = Task(loaded, train, test, accelerator or Accelerator(cpu=True), **task)
    return evaluate_finetune(task, FinetuneSettings(epochs, rate, optimizer))["accuracy"]


def crops_and_flips(resolution, seed=0):
    loaded = LoadedBackbone(nn.Identity(), resolution, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    nothing = CachedImages(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1).long(), None, "nothing")
    return Task(loaded, nothing, nothing, Accelerator(cpu=True), seed=seed).augmentation()


def textures(count, seed):
    """Noise of one color and contrast throughout, whose classes differ in their grain: stripes, checks, neither."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    sign = 2 * torch.randint(2, (count, 1, 32, 32), generator=generator) - 1
    ramp = torch.arange(32) // 2 % 2 * 2 - 1
    patterns = {1: ramp[None].expand(32, 32), 2: ramp[None] * ramp[:, None]}
    for label, pattern in patterns.items():
        phase = 2 * torch.randint(2, (int((labels == label).sum()), 1, 1, 1), generator=generator) - 1
        sign[labels == label] = pattern * phase
    noise = 40 * torch.randn(count, 3, 32, 32, generator=generator)
    images = (128 + 50 * sign + noise).clamp(0, 255).to(torch.uint8)
    return CachedImages(images, labels, ["noise", "stripes", "checks"], "textures")


def small_backbone():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=0)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_it_learns_what_the_frozen_features_lack(optimizer):
    train, test = textures(240, 0), textures(120, 1)
    backbone = small_backbone()
    before = {name: value.clone() for name, value in backbone.named_parameters()}
    lines = []
    got = finetune(backbone, train, test, epochs=8, batch_size=32, optimizer=optimizer, report=lines.append)
    assert got > 90
    assert all(not torch.equal(value, before[name]) for name, value in backbone.named_parameters())
    assert len(lines) == 8 and lines[-1].startswith("epoch 8/8  loss ")
    assert float(lines[-1].split()[-1]) < 0.5 * float(lines[0].split()[-1])


def test_class_ids_of_any_size():
    train, test = textures(96, 0), textures(48, 1)
    plain = finetune(small_backbone(), train, test, epochs=2, batch_size=32)
    ids = torch.tensor([4, 90, 2_000_000_000])
    train.labels, test.labels = ids[train.labels], ids[test.labels]
    assert finetune(small_backbone(), train, test, epochs=2, batch_size=32) == plain > 20


def test_the_accuracy_is_that_of_the_test_images():
    """With a backbone that cannot learn, the head separates mean colors; the accuracy is known."""

    class Color(nn.Module):
        num_features = 3

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, images):
            return self.scale * images.mean(dim=(2, 3))

    plain = torch.zeros(60, 3, 8, 8, dtype=torch.uint8)
    labels = torch.arange(60) % 3
    plain[torch.arange(60), labels] = 255
    train = CachedImages(plain, labels, None, "colors")
    wrong = labels.clone()
    wrong[:15] = (wrong[:15] + 1) % 3  # a quarter is mislabeled
    test = CachedImages(plain, wrong, None, "colors")
    assert finetune(Color(), train, test, epochs=3, batch_size=20, resolution=8) == 75.0


def test_it_repeats_and_leaves_the_random_state():
    train, test = textures(48, 0), textures(24, 1)
    states = []
    for _ in range(2):
        backbone = small_backbone()
        state = torch.get_rng_state()
        finetune(backbone, train, test, epochs=2, batch_size=16)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(1)
        states.append(backbone.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(("images", "steps", "world", "size"), [(64, 4, 1, 16), (65, 5, 1, 13), (7, 2, 2, 1)])
def test_the_batches_of_an_epoch(images, steps, world, size):
    indices = list(range(100, 100 + images))
    shares = _shares(indices, steps, world, torch.Generator().manual_seed(0))
    assert len(shares) == world and all(len(batches) == steps for batches in shares)
    sampled = [index for batches in shares for batch in batches for index in batch]
    assert {len(batch) for batches in shares for batch in batches} == {size}
    assert len(set(sampled)) == len(sampled) and set(sampled) <= set(indices)
    assert sampled != sorted(sampled)


def test_only_the_chosen_images_are_trained_on():
    train = textures(60, 0)
    train.images[30:] = 0
    seen = []

    class Spy(CachedImages):
        def __getitems__(self, indices):
            seen.extend(indices)
            return super().__getitems__(indices)

    spied = Spy(train.images, train.labels, train.classes, train.name)
    finetune(small_backbone(), spied, textures(12, 1), epochs=2, batch_size=10, indices=range(30))
    assert sorted(seen) == sorted([*range(30)] * 2)


def test_crops_and_flips_keep_the_colors():
    images = torch.full((16, 3, 40, 40), 0, dtype=torch.uint8)
    images[:, 0], images[:, 1] = 255, 100
    views = crops_and_flips(24)(images, torch.ones(16))
    assert views.shape == (16, 3, 24, 24)
    expected = torch.tensor([1.0, 100 / 255, 0.0]).view(1, 3, 1, 1).expand_as(views)
    torch.testing.assert_close(views, expected, rtol=0, atol=1e-5)


def test_crops_and_flips_differ_by_image_and_by_call():
    ramp = torch.arange(64, dtype=torch.uint8).expand(16, 3, 64, 64).contiguous(), torch.ones(16)
    crop = crops_and_flips(32, seed=1)
    first, second = crop(*ramp), crop(*ramp)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first, second)
    falling = (first[:, 0, 0, 0] > first[:, 0, 0, -1]).sum()
    assert 0 < falling < 16  # some are mirrored
    assert torch.equal(crops_and_flips(32, seed=1)(*ramp), first)
    assert not torch.equal(crops_and_flips(32, seed=2)(*ramp), first)


def test_a_loss_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="the loss of epoch 1 is nan; lower learning_rate"):
        finetune(small_backbone(), textures(12, 0), textures(12, 1), batch_size=2, rate=1e30)


class WithoutBatchNorm(nn.Module):
    """Each process sees half a batch: with BatchNorm two would not equal one."""

    num_features = 16

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images):
        return self.layers(images)


def finetune_plain_images(accelerator):
    """The trained weights, the accuracy and the reports; no crop changes an image of one color."""
    generator = torch.Generator().manual_seed(0)
    colors = torch.randint(256, (51, 3, 1, 1), dtype=torch.uint8, generator=generator).expand(51, 3, 16, 16)
    images = CachedImages(colors.contiguous(), colors[:, :, 0, 0].argmax(dim=1), None, "colors")
    backbone, lines = WithoutBatchNorm(), []
    options = {"resolution": 16, "epochs": 3, "batch_size": 8, "indices": range(48), "report": lines.append}
    accuracy = finetune(backbone, images, images, accelerator=accelerator, **options)
    return {"weights": backbone.state_dict(), "accuracy": accuracy, "lines": len(lines)}


def on_two_processes(path):
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    alone, together = torch.load(path), finetune_plain_images(accelerator)
    torch.testing.assert_close(together.pop("weights"), alone.pop("weights"), rtol=1e-4, atol=1e-5)
    assert together == alone
    accelerator.end_training()


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    alone = finetune_plain_images(Accelerator(cpu=True))
    start = WithoutBatchNorm().state_dict()["layers.0.weight"]
    assert alone["lines"] == 3 and not torch.allclose(alone["weights"]["layers.0.weight"], start, rtol=1e-2)
    torch.save(alone, tmp_path / "alone.pt")
    launch(__file__, tmp_path / "alone.pt")


if __name__ == "__main__":
    on_two_processes(sys.argv[1])
