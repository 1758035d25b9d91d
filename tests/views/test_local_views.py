"""Local views: their sizes, crops and blur, next to a pair that they do not change."""

import pytest
import torch

from hf_essl.config import ViewArguments
from hf_essl.methods import SSLModel
from hf_essl.selection import HardAugment, plain_views
from hf_essl.views import LOCAL, Views

IMAGES = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def arguments(**changes):
    progressive = {"resolution_schedule": "progressive", "min_resolution": 96}
    return ViewArguments(**{"local_views": 3, **progressive, **changes})


def test_sizes_follow_the_resolution_in_multiples_of_16():
    """96 / 224 of 96, 128, 160, 192 and 224 px is 41.1, 54.9, 68.6, 82.3 and 96."""
    args = arguments()
    args.check()
    assert [args.local_size(side) for side in args.stages] == [48, 48, 64, 80, 96]
    assert args.resolutions == (48, 64, 80, 96, 128, 160, 192, 224)
    assert ViewArguments().resolutions == (224,), "without local views their size is nothing to the network"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"local_resolution": 256}, r"local_resolution is 256, above resolution 224; lower it"),
        ({"local_resolution": 100}, r"local_resolution is 100, not a multiple of .* 32; use 96 or 112"),
        ({"local_scale": [0.4, 0.05]}, r"local_scale is \[0.4, 0.05\]; the smallest comes first"),
        ({"local_views": -1}, r"local_views is -1; it should be greater than or equal to 0"),
        (
            {"extra_targets": True, "selection": "hard", "num_views": 3},
            r"extra_targets is true with local_views: 3, .*; set extra_targets: false or local_views: 0",
        ),
    ],
)
def test_values_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(**changes).check()


@pytest.mark.parametrize("augmentation", ["simclr", "randaugment"])
def test_crops_have_the_local_scale_and_the_pair_keeps_its_own(augmentation):
    args = arguments(augmentation=augmentation, crop_scale=[0.5, 1.0], blur_p=[1.0, 0.0], solarize_p=[0.0, 1.0])
    images = IMAGES[:1].expand(2000, -1, -1, -1)
    first, second, local = Views(args).sample_all(images, [0, 1, LOCAL])
    for params, low, high in ((first, 0.5, 1.0), (second, 0.5, 1.0), (local, 0.05, 0.4)):
        area = params.box[:, 2:].prod(dim=1)
        assert low - 1e-6 <= area.min() and area.max() <= high + 1e-6
        middle = (low + high) / 2
        assert low == 0.5 or area.mean().item() == pytest.approx(middle, abs=0.02), "uniform"
    if augmentation == "simclr":
        assert (local.sigma > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
        assert not local.solarize.any() and second.solarize.all() and (first.sigma > 0).all()


@pytest.mark.parametrize("executor", ["fused", "kornia"])
@pytest.mark.parametrize(("resolution", "local", "size", "expected"), [(224, 96, 96, 2.0), (224, 96, 48, 1.0)])
def test_a_local_view_has_as_many_pixels_of_blur_as_the_pair(executor, resolution, local, size, expected):
    """DINO blurs its local crops of 96 px with up to 2 px; the sigma of the derivative of a blurred edge shows it."""
    image = torch.zeros(1, 3, 400, 400, dtype=torch.uint8)
    image[..., 200:] = 255
    args = arguments(
        local_resolution=local, local_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0], blur_sigma=[2.0, 2.0], local_blur_p=1.0,
        jitter_p=0.0, grayscale_p=0.0, flip_p=0.0, view_executor=executor,
    )  # fmt: skip
    views = Views(args, mean=(0, 0, 0), std=(1, 1, 1))
    view = views.render(image, views.sample(image, LOCAL), size)[0, 0, size // 2]
    slope, places = view.diff(), torch.arange(size - 1) + 0.5
    middle = (slope * places).sum() / slope.sum()
    sigma = ((slope * (places - middle) ** 2).sum() / slope.sum()).sqrt().item()
    sharp = (400 / size) / 12**0.5 / (400 / size)  # of an edge that the resize itself blurs: below half a pixel
    assert (sigma**2 - sharp**2) ** 0.5 == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("executor", ["fused", "kornia"])
def test_views_are_rendered_at_both_sizes_of_the_stage(executor):
    views = Views(arguments(view_executor=executor))
    views.resolution = 160
    made = plain_views(views, IMAGES)
    assert {name: tuple(view.shape) for name, view in made.items()} == {
        "first": (4, 3, 160, 160),
        "second": (4, 3, 160, 160),
        "local": (3, 4, 3, 64, 64),
    }


def test_hard_augment_chooses_the_pair_and_the_local_views_follow():
    torch.manual_seed(0)
    model = SSLModel.from_timm("test_resnet", "simsiam").train()
    args = arguments(selection="hard", num_views=4, selection_resolution=32)
    augment, seen = HardAugment(Views(args, seed=5)), []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    chosen = augment(model, IMAGES)
    assert seen == [32] * 4, "local views are not compared"
    sampled = Views(args, seed=5).sample_all(IMAGES, [0, 1, 0, 1, LOCAL, LOCAL, LOCAL])
    for found, expected in zip(chosen.local, sampled[4:], strict=True):
        assert torch.equal(found.box, expected.box) and torch.equal(found.jitter, expected.jitter)
    pairs = [augment.pairs[index] for index in chosen.pair.tolist()]
    for n, (i, j) in enumerate(pairs):
        assert torch.equal(chosen.first.box[n], sampled[i].box[n])
        assert torch.equal(chosen.second.box[n], sampled[j].box[n])
