"""Backbones from timm: the width of their features, the sizes they accept, and one-line errors before any work."""

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

from hf_essl import export_backbone
from hf_essl.config import SSLTrainingArguments, ViewArguments
from hf_essl.evaluation.backbone import load_backbone
from hf_essl.evaluation.run_metric import RunMetric
from hf_essl.methods import METHODS, SSLModel, check_backbone
from hf_essl.methods.backbone import accepted_arguments, build_backbone, feature_size, meta_backbone, storable
from hf_essl.pretrain import pretrain
from hf_essl.recipe import load_recipe
from hf_essl.sweep import Sweep, run_sweep
from hf_essl.sweep_cells import Cell
from hf_essl.trainer import SSLTrainer

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
HEADS = METHODS["simsiam"].small_args
CURRICULUM = (64, 96, 128, 160, 192, 224)
PROGRESSIVE = {"resolution": 64, "min_resolution": 32, "resolution_schedule": "progressive"}


@pytest.mark.parametrize(
    ("name", "width", "timm_says"),
    [
        ("resnet18", 512, 512),
        ("mobilenetv3_small_100", 1024, 576),
        ("mobilenetv4_conv_small", 1280, 960),
        ("ghostnet_100", 1280, 960),
        ("vgg11", 4096, 512),
        ("lcnet_100", 1280, 512),
        ("hgnetv2_b0", 2048, 1024),
    ],
)
def test_the_width_is_that_of_the_features(name, width, timm_says):
    network = meta_backbone(name, {})
    assert network.num_features == timm_says
    assert feature_size(network) == width


def test_measuring_changes_nothing():
    torch.manual_seed(0)
    backbone = timm.create_model("test_resnet", num_classes=0, drop_path_rate=0.5).eval()
    backbone.layer1.train()
    before, modes = copy.deepcopy(backbone.state_dict()), [module.training for module in backbone.modules()]
    random = torch.get_rng_state()
    assert SSLModel(backbone).num_features == 96
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {}),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
        ("vit_small_patch14_dinov2", {"dynamic_img_size": True, "dynamic_img_pad": True}),  # 14 does not divide 64
        ("swin_tiny_patch4_window7_224", {"dynamic_img_size": True}),
    ],
)
def test_networks_that_accept_a_whole_curriculum(name, arguments):
    assert accepted_arguments(name, {}, CURRICULUM) == arguments


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "levit_128s"])
def test_networks_that_are_built_for_one_size(name):
    assert accepted_arguments(name, {}, [96]) == {"img_size": 96}
    assert accepted_arguments(name, {}) == {}  # timm's own size
    with pytest.raises(
        ValueError, match=r"accepts one size per run, .*; set resolution_schedule: constant, "
    ) as error:
        accepted_arguments(name, {}, [64, 96])
    assert str(error.value).endswith("resolution: 96, selection_resolution: 96") and "\n" not in str(error.value)


def test_sizes_that_cannot_be_chosen_are_named():
    with pytest.raises(
        ValueError, match=r"'efficientformer_l1', .* 64, 96; it accepts 224 only; set .*resolution: 224,"
    ):
        accepted_arguments("efficientformer_l1", {}, [64, 96])
    with pytest.raises(
        ValueError, match=r"'dla46_c', .* 48, 64; of those up to 256 it accepts 32, 64, 96, 128, .*min_res"
    ):
        accepted_arguments("dla46_c", {}, [48, 64])


def test_the_users_arguments_win():
    assert accepted_arguments("levit_128s", {"img_size": 128}, [128]) == {"img_size": 128}
    with pytest.raises(ValueError, match="resolutions 64, 128; it accepts 128 only"):
        accepted_arguments("levit_128s", {"img_size": 128}, [64, 128])
    strict = accepted_arguments("vit_tiny_patch16_224", {"dynamic_img_size": False}, [96])
    assert strict == {"dynamic_img_size": False, "img_size": 96}


BAD = [
    ("resnet5O", {}, "backbone is 'resnet5O', which is not a timm model; did you mean .*resnet50"),
    ("resnet50.nothere", {}, "backbone is 'resnet50.nothere'; choose one of resnet50, resnet50.a1_in1k, "),
    (
        "resnet18",
        {"nope": 1},
        "backbone_args contains 'nope', which resnet18 does not accept; choose from .*drop_path",
    ),
    ("resnet18", {"drop_path_rate": "abc"}, "backbone_args contains drop_path_rate: 'abc'"),
    (
        "resnet18",
        {"drop_path_rate": 5},
        r"backbone_args contains drop_path_rate: 5; a drop rate is a number in \[0, 1\)",
    ),
    ("resnet18", {"num_classes": 10}, "backbone_args contains num_classes, which is not accepted: pretraining has no"),
    ("resnet18", {"features_only": True}, "backbone_args contains features_only, which is not accepted"),
    (
        "resnet18",
        {"global_pool": ""},
        r"'global_pool': ''}, but ResNet returns \(2, 512, 7, 7\) for 2 images instead of",
    ),
    ("resnet18", {"in_chans": 1}, "'in_chans': 1}, but ResNet does not accept 3 x 224 x 224 images"),
    ("resnet18", {"checkpoint_path": "/no/such.pth"}, "checkpoint_path: /no/such.pth, which is not a file"),
    (
        "vit_tiny_patch16_224",
        {"depth": 2, "embed_dim": "x"},
        "contains embed_dim: 'x', which vit_tiny_patch16_224 does",
    ),
    (
        "levit_128s",
        {},
        "backbone is 'levit_128s', which does not accept the resolutions 32, 64, 96; it accepts one size",
    ),
]


@pytest.mark.parametrize(("backbone", "backbone_args", "message"), BAD)
def test_errors_in_one_line_before_images_are_loaded(backbone, backbone_args, message, tmp_path):
    recipe = load_recipe(QUICKSTART, ["--dataset", "/no/such/folder", "--output_dir", str(tmp_path / "run")])
    recipe.model.backbone, recipe.model.backbone_args = backbone, backbone_args
    with pytest.raises(ValueError, match=message) as error:
        pretrain(recipe)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_sweep_checks_all_networks_before_the_first_run(tmp_path):
    words = ["--output_dir", str(tmp_path), "--backbone"]
    recipes = [load_recipe(QUICKSTART, [*words, name]) for name in ("test_resnet", "resnet5O")]
    cells = [Cell(str(number), {}, recipe) for number, recipe in enumerate(recipes)]
    sweep = Sweep("", cells, RunMetric(), {"": ["accuracy"]}, None, {})
    with pytest.raises(ValueError, match="backbone is 'resnet5O'"):
        run_sweep(sweep, train=lambda recipe: pytest.fail("a cell ran"), report=lambda line: None)


def test_pretrained_without_weights():
    untrained = next(name for name in timm.list_models() if not timm.is_model_pretrained(name))
    check_backbone(untrained)
    with pytest.raises(ValueError, match=f"pretrained is true, but timm has no weights of {untrained}; set"):
        check_backbone(untrained, pretrained=True)


def test_a_trainer_refuses_a_network_before_its_images(tmp_path):
    args = SSLTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    model = SSLModel.from_timm("beit_base_patch16_224", method_args=HEADS, backbone_args={"depth": 1})
    with pytest.raises(ValueError, match=r"Beit, does not accept 32, 64 px; build it with .*resolutions=\[32, 64\]"):
        SSLTrainer(model, args, "/no/such/folder", view_args=ViewArguments(**PROGRESSIVE))


def test_every_resolution_of_a_run_counts():
    assert ViewArguments(resolution=224).resolutions == (224,)
    assert ViewArguments(**PROGRESSIVE).resolutions == (32, 64)
    hard = {"selection": "hard", "num_views": 4, "selection_resolution": 48}
    assert ViewArguments(**PROGRESSIVE, **hard).resolutions == (32, 48, 64)
    uneven = ViewArguments(resolution=96, min_resolution=32, resolution_step=64, resolution_schedule="progressive")
    assert uneven.resolutions == (32, 96)


@pytest.mark.parametrize(
    ("name", "arguments", "sizes"),
    [
        ("levit_128s", {"depth": [1, 1, 1]}, (64,)),
        (
            "swin_tiny_patch4_window7_224",
            {"depths": [1, 1, 1, 1], "embed_dim": 24, "num_heads": [1, 2, 4, 8]},
            (64, 96),
        ),
        ("vit_tiny_patch16_224", {"patch_size": 14, "depth": 1}, (64, 96)),
        ("coat_tiny", {"serial_depths": [1, 1, 1, 1], "parallel_depth": 1}, (64,)),  # tensors that share memory
        ("crossvit_tiny_240", {"depth": [[1, 1, 0], [1, 1, 0], [1, 1, 0]]}, (64, 96)),  # timm calls it fixed at 240
    ],
)
def test_exports_and_checkpoints_reload_with_their_arguments(name, arguments, sizes, tmp_path):
    torch.manual_seed(0)
    model = SSLModel.from_timm(name, method_args=HEADS, backbone_args=arguments, resolutions=sizes).eval()
    images = [torch.randn(2, 3, size, size) for size in sizes]
    with torch.no_grad():
        expected = [model.backbone(batch) for batch in images]
    exported = export_backbone(model, tmp_path / "backbone", input_size=sizes[-1])
    (tmp_path / "checkpoint-1").mkdir()
    save_file(storable(model.state_dict()), tmp_path / "checkpoint-1" / "model.safetensors")
    schedule = f"min_resolution: {sizes[0]}\nresolution_schedule: progressive" if len(sizes) > 1 else ""
    recipe = f"backbone: {name}\nbackbone_args: {arguments}\nresolution: {sizes[-1]}\n{schedule}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    for source in (exported, tmp_path / "checkpoint-1"):
        loaded = load_backbone(source)
        assert loaded.resolution == sizes[-1]
        with torch.no_grad():
            torch.testing.assert_close([loaded.backbone(batch) for batch in images], expected, atol=0, rtol=0)
    wrapped = AutoModel.from_pretrained(str(exported)).eval()
    with torch.no_grad():
        torch.testing.assert_close(wrapped(pixel_values=images[-1]).pooler_output, expected[-1])


def test_tied_tensors_are_stored_one_by_one(tmp_path):
    weight = torch.randn(3, 4)
    save_file(storable({"a": weight, "b": weight, "c": weight.T}), tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert torch.equal(found["a"], weight) and torch.equal(found["b"], weight) and torch.equal(found["c"], weight.T)


def test_parameters_that_the_features_ignore_do_not_train():
    """ConViT's class token is unused with average pooling: no gradient, and DDP would stop at it."""
    arguments = {"depth": 2, "embed_dim": 24, "num_heads": 2, "local_up_to_layer": 1, "global_pool": "avg"}
    model = SSLModel.from_timm("convit_tiny", method_args=HEADS, backbone_args=arguments, resolutions=[64])
    model.train()(*torch.randn(2, 4, 3, 64, 64))["loss"].mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all((p.grad is None) == (not p.requires_grad) for p in model.parameters())


def test_weights_of_a_file(tmp_path):
    torch.manual_seed(0)
    saved = timm.create_model("test_resnet", num_classes=0)
    save_file(saved.state_dict(), tmp_path / "x.safetensors")
    loaded = build_backbone("test_resnet", backbone_args={"checkpoint_path": str(tmp_path / "x.safetensors")})
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in saved.state_dict().items())
    save_file({"x": torch.zeros(1)}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="the weights of test_resnet cannot be loaded: ") as error:
        SSLModel.from_timm("test_resnet", backbone_args={"checkpoint_path": str(tmp_path / "y.safetensors")})
    assert "\n" not in str(error.value)


def test_a_backbone_of_ones_own():
    backbone = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert SSLModel(backbone).num_features == 5
    with pytest.raises(
        ValueError, match=r"Conv2d returns \(2, 5, 222, 222\) for 2 images instead of one vector per image"
    ):
        SSLModel(nn.Conv2d(3, 5, 3))
