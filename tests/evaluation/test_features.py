import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hf_essl
import hf_essl.evaluation.features
from hf_essl.data import NO_LABEL, Unreadable
from hf_essl.evaluation import extract_features
from tests.distributed.launch import launch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPTIONS = {"resolution": 32, "mean": MEAN, "std": STD, "batch_size": 4, "crop_pct": 1.0}  # whole images


class Images(torch.utils.data.Dataset):
    """Samples of the hf_essl.data contract."""

    def __init__(self, n=11, size=32, labels=True, unreadable=(), seed=0):
        self.images = torch.randint(
            256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
        )
        self.labels, self.unreadable = labels, unreadable

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        replaced = [Unreadable(index, f"{index}.jpg", "torn")] if index in self.unreadable else []
        label = index % 3 if self.labels else NO_LABEL
        return {"image": self.images[index], "aspect": 1.0, "label": label, "unreadable": replaced}


class ReadyBatches(Images):
    def __getitems__(self, indices):
        labels = torch.tensor(indices) % 3
        return {"image": self.images[indices], "aspect": torch.ones(len(labels)), "label": labels, "unreadable": []}


class Pixels(nn.Module):
    """The mean of each channel."""

    def forward(self, images):
        return images.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def backbone():
    return timm.create_model("test_resnet", num_classes=0).eval()


@pytest.fixture(scope="module")
def expected(backbone):
    """The features of Images(), one image at a time."""
    images = Images().images
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        return torch.cat([backbone(((image / 255.0 - mean) / std)[None]) for image in images])


def test_equals_one_image_at_a_time(backbone, expected):
    features, labels = extract_features(backbone, Images(), **OPTIONS)
    assert features.dtype == torch.float32 and features.device.type == "cpu" and not features.is_inference()
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert labels.tolist() == [i % 3 for i in range(11)]


def test_batches_that_the_dataset_gathers_and_worker_processes(backbone, expected):
    for dataset, workers in ((ReadyBatches(), 0), (Images(), 2)):
        features, labels = extract_features(backbone, dataset, num_workers=workers, **OPTIONS)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
        assert labels.tolist() == [i % 3 for i in range(11)]


def test_normalization_by_hand():
    dataset = Images(2, size=8)
    dataset.images[0], dataset.images[1] = 0, 255
    features, _ = extract_features(Pixels(), dataset, resolution=4, mean=(0.5, 0.4, 0.0), std=(0.5, 0.2, 1.0))
    torch.testing.assert_close(features, torch.tensor([[-1.0, -2.0, 0.0], [1.0, 3.0, 1.0]]))


@pytest.mark.parametrize(("crop_pct", "expected"), [(1.0, 0.25), (0.5, 1.0)])
def test_the_crop_is_the_center_of_the_image_and_not_of_its_canvas(crop_pct, expected):
    """A square of half the short side in the middle of an image of 2 : 1, and of one of 1 : 2."""
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    images[0, :, 8:24, 12:20] = 255  # as wide as it is high in the image, a quarter of the canvas across
    images[1, :, 12:20, 8:24] = 255
    images[0, :, :, :8] = images[0, :, :, 24:] = 77  # outside of the center square
    images[1, :, :8] = images[1, :, 24:] = 77
    samples = [
        {"image": image, "aspect": aspect, "label": 0, "unreadable": []}
        for image, aspect in zip(images, (2.0, 0.5), strict=True)
    ]
    found, _ = extract_features(
        Pixels(), samples, resolution=16, mean=(0, 0, 0), std=(1, 1, 1), crop_pct=crop_pct, batch_size=2
    )
    assert found[:, 0].tolist() == pytest.approx([expected, expected], abs=1e-5)


def test_resize_is_antialiased_as_pillows_is():
    dataset = Images(1, size=64)
    features, _ = extract_features(nn.Flatten(), dataset, resolution=16, mean=(0, 0, 0), std=(1, 1, 1), crop_pct=1.0)
    picture = Image.fromarray(dataset.images[0].permute(1, 2, 0).numpy())
    reference = np.asarray(picture.resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255
    # Pillow rounds to whole values, once in each direction
    assert np.abs(features.view(3, 16, 16).numpy() - reference).max() <= 1.01 / 255


def test_without_labels(backbone):
    features, labels = extract_features(backbone, Images(labels=False), **OPTIONS)
    assert features.shape == (11, backbone.num_features)
    assert labels is None


def test_a_missing_label_among_others_is_returned_as_such(backbone):
    class PartlyLabeled(Images):
        def __getitem__(self, index):
            return super().__getitem__(index) | ({"label": NO_LABEL} if index == 1 else {})

    _, labels = extract_features(backbone, PartlyLabeled(4), **OPTIONS)
    assert labels.tolist() == [0, NO_LABEL, 2, 0]


def test_unreadable_images_are_skipped_with_a_warning(backbone, expected, caplog):
    features, labels = extract_features(backbone, Images(unreadable=(1, 10)), **OPTIONS)
    kept = [0, 2, 3, 4, 5, 6, 7, 8, 9]
    torch.testing.assert_close(features, expected[kept], rtol=1e-4, atol=1e-5)
    assert labels.tolist() == [i % 3 for i in kept]
    assert "skipped 2 of 11 images" in caplog.text


def test_nothing_else_changes():
    backbone = timm.create_model("test_resnet", num_classes=0, drop_rate=0.5).train()
    backbone.layer1.eval()  # a frozen part
    modes = [module.training for module in backbone.modules()]
    weights = {name: value.clone() for name, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    first, _ = extract_features(backbone, Images(), **OPTIONS)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in backbone.state_dict().items())
    assert torch.equal(first, extract_features(backbone, Images(), **OPTIONS)[0])


def test_modes_are_restored_after_an_error():
    backbone = timm.create_model("test_resnet", num_classes=0, global_pool="").train()
    with pytest.raises(ValueError, match="instead of B x D; build it with"):
        extract_features(backbone, Images(), **OPTIONS)
    assert backbone.training


@pytest.fixture
def half_precision():
    """An accelerator that computes in bfloat16; its precision is global, and must not stay."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


def test_mixed_precision_gives_float32(half_precision, backbone, expected):
    accelerator = half_precision
    features, _ = extract_features(backbone, Images(), accelerator=accelerator, **OPTIONS)
    assert features.dtype == torch.float32
    assert not torch.allclose(features, expected, rtol=1e-5, atol=1e-6)  # autocast was on
    assert torch.nn.functional.cosine_similarity(features, expected).min() > 0.99


class LargeTensors(TorchDispatchMode):
    """Counts the tensors of at least `least` bytes that operations make."""

    def __init__(self, least):
        super().__init__()
        self.least, self.storages = least, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() >= self.least:
            self.storages.add(out.untyped_storage().data_ptr())
        return out


@pytest.mark.parametrize("unreadable", [(), (1, 10)])
def test_there_is_never_a_second_copy_of_the_features(unreadable):
    dataset = Images(2_000, size=8, labels=False, unreadable=unreadable)
    options = OPTIONS | {"resolution": 8, "batch_size": 100}
    with LargeTensors(2 * 2_000 * 192) as made:
        kept, _ = extract_features(nn.Flatten(), dataset, dtype=torch.float16, **options)
    assert len(made.storages) == 1  # half precision, and what is returned lies in it
    assert kept.untyped_storage().data_ptr() in made.storages
    images = dataset.images[[i for i in range(2_000) if i not in unreadable]] / 255.0
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(kept, ((images - mean) / std).flatten(1).half(), rtol=1e-3, atol=1e-3)


def test_half_precision_above_a_size(backbone, expected, monkeypatch):
    assert extract_features(backbone, Images(), dtype=torch.float16, **OPTIONS)[0].dtype == torch.float16
    assert extract_features(backbone, Images(), dtype=torch.bfloat16, **OPTIONS)[0].dtype == torch.bfloat16
    monkeypatch.setattr(hf_essl.evaluation.features, "LARGE_BANK", 4 * 11 * 96 - 1)
    large, _ = extract_features(backbone, Images(), **OPTIONS)
    assert large.dtype == torch.float16
    torch.testing.assert_close(large.float(), expected, rtol=2e-3, atol=1e-4)
    monkeypatch.setattr(hf_essl.evaluation.features, "LARGE_BANK", 4 * 11 * 96)
    assert extract_features(backbone, Images(), **OPTIONS)[0].dtype == torch.float32


def test_features_beyond_half_precision_are_an_error_and_not_infinite():
    options = OPTIONS | {"mean": (0.0, 0.0, 0.0), "std": (1e-6, 1.0, 1.0)}
    with pytest.raises(ValueError, match=r"above the 6.55e\+04 of torch.float16; pass dtype=torch.float32"):
        extract_features(Pixels(), Images(), dtype=torch.float16, **options)
    assert extract_features(Pixels(), Images(), **options)[0].abs().max() > 1e5


def test_chosen_images_in_their_order(backbone, expected):
    chosen = [7, 0, 10, 3, 4]
    features, labels = extract_features(backbone, Images(unreadable=(0,)), indices=chosen, **OPTIONS)
    torch.testing.assert_close(features, expected[[7, 10, 3, 4]], rtol=1e-4, atol=1e-5)
    assert labels.tolist() == [1, 1, 0, 1]


def test_a_transform_takes_the_place_of_the_resize():
    def upper_half(images, aspect):
        assert images.dtype == torch.uint8 and aspect.tolist() == [1.0] * len(images)
        return images[:, :, : images.shape[2] // 2].float()

    features, _ = extract_features(Pixels(), Images(), transform=upper_half, **OPTIONS)
    expected = Images().images[:, :, :16].float().mean(dim=(2, 3))
    torch.testing.assert_close(features, expected)


def on_two_processes():
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    torch.manual_seed(0)
    backbone = timm.create_model("test_resnet", num_classes=0)
    cases = [
        (Images(11), None),  # an odd number
        (Images(18), None),  # a last batch that is short
        (Images(1), None),  # fewer images than processes
        (Images(9, unreadable=(8,)), None),
        (Images(11, labels=False), [0, 2, 4, 6, 8]),
    ]
    for dataset, indices in cases:
        alone, labels_alone = extract_features(backbone, dataset, indices=indices, **OPTIONS)
        features, labels = extract_features(backbone, dataset, accelerator=accelerator, indices=indices, **OPTIONS)
        torch.testing.assert_close(features, alone, rtol=1e-4, atol=1e-5)
        assert labels is labels_alone is None or torch.equal(labels, labels_alone)
    accelerator.end_training()


@pytest.mark.slow
def test_two_processes_agree_with_one():
    launch(__file__)


def test_refusals(backbone):
    for dataset, indices in (([], None), (Images(), [])):
        with pytest.raises(ValueError, match="there are no images to extract features of"):
            extract_features(backbone, dataset, indices=indices, **OPTIONS)
    with pytest.raises(ValueError, match="a stream without a length"):
        extract_features(backbone, iter(Images()), **OPTIONS)


if __name__ == "__main__":
    on_two_processes()
