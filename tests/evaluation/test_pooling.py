"""Features of a ViT, against timm's forward_features, its blocks run one by one, and networks built for one size."""

import json

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from hf_essl import cli, export_backbone, load_backbone
from hf_essl.evaluation.patches import PatchFeatures
from hf_essl.evaluation.pooling import PooledFeatures
from hf_essl.hub import formats
from hf_essl.methods import SSLModel
from hf_essl.methods.backbone import build_backbone

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def vit(name="test_vit", **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, dynamic_img_size=True, **arguments).eval()


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_r_s16_p8_224"])
@torch.inference_mode()
def test_class_token_and_mean_of_the_patches_are_those_of_forward_features(name):
    model = vit(name)
    tokens = model.forward_features(IMAGES)
    mean = tokens[:, 1:].sum(dim=1) / (tokens.shape[1] - 1)
    torch.testing.assert_close(PooledFeatures(model, "cls")(IMAGES), tokens[:, 0])
    torch.testing.assert_close(PooledFeatures(model, "mean")(IMAGES), mean)
    torch.testing.assert_close(PooledFeatures(model, "cls_mean")(IMAGES), torch.cat([tokens[:, 0], mean], dim=1))


@pytest.mark.parametrize(("name", "registers"), [("test_vit", 3), ("test_vit3", 1)])
@torch.inference_mode()
def test_register_tokens_are_no_patches(name, registers):
    """test_vit3 has a register token, no class token, and attention pooling of its own."""
    model = vit(name, reg_tokens=registers)
    tokens = model.forward_features(IMAGES)
    assert tokens.shape[1] == (name == "test_vit") + registers + 16
    torch.testing.assert_close(PooledFeatures(model, "mean")(IMAGES), tokens[:, -16:].mean(1))


@torch.inference_mode()
def test_the_networks_own_pooling_is_one_of_them():
    """timm norms the tokens before a class token, but after an average."""
    model, averaged = vit(), vit(global_pool="avg")
    torch.testing.assert_close(PooledFeatures(model, "cls")(IMAGES), model(IMAGES))
    torch.testing.assert_close(PooledFeatures(averaged, "mean")(IMAGES), averaged(IMAGES))


@torch.inference_mode()
def test_the_mean_is_that_of_the_patch_features():
    model = vit()
    patches = PatchFeatures(model, 64)
    assert patches.grid == (4, 4)
    torch.testing.assert_close(PooledFeatures(model, "mean")(IMAGES), patches(IMAGES).mean(dim=1))


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224"])
@torch.inference_mode()
def test_the_class_tokens_of_the_last_layers_are_those_of_the_blocks(name):
    """As in DINO's eval_linear.py: the norm of each of the last n class tokens, then the mean of the last patches."""
    model, layers = vit(name), 3
    x, outputs = model.norm_pre(model._pos_embed(model.patch_embed(IMAGES))), []
    for block in model.blocks:
        x = block(x)
        outputs.append(model.norm(x))
    expected = torch.cat([output[:, 0] for output in outputs[-layers:]], dim=1)
    torch.testing.assert_close(PooledFeatures(model, "cls", layers)(IMAGES), expected)
    with_mean = torch.cat([expected, outputs[-1][:, 1:].mean(dim=1)], dim=1)
    torch.testing.assert_close(PooledFeatures(model, "cls_mean", layers)(IMAGES), with_mean)
    found = model.get_intermediate_layers(IMAGES, n=layers, return_prefix_tokens=True, norm=True)
    torch.testing.assert_close(torch.cat([tokens[:, 0] for _, tokens in found], dim=1), expected)


@pytest.mark.parametrize("size", [32, 64, 96])
@torch.inference_mode()
def test_features_at_any_resolution_are_those_of_a_network_built_for_it(size):
    """Position embeddings are interpolated as timm interpolates weights for another size."""
    dynamic, fixed = vit(), timm.create_model("test_vit", num_classes=0, img_size=size).eval()
    state = dynamic.state_dict()
    side = size // 16
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], (side, side), num_prefix_tokens=1)
    fixed.load_state_dict(state)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    for pool in ("cls", "mean"):
        torch.testing.assert_close(PooledFeatures(dynamic, pool)(images), PooledFeatures(fixed, pool)(images))


@torch.inference_mode()
def test_a_size_that_the_patch_does_not_divide_is_padded():
    """At 40 px, patches of 16 px need 48: zeros are added at the right and below."""
    model = build_backbone("test_vit", resolutions=[40, 64]).eval()
    images = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(images, (0, 8, 0, 8))
    torch.testing.assert_close(PooledFeatures(model, "cls_mean")(images), PooledFeatures(model, "cls_mean")(padded))
    assert PatchFeatures(model, 40).grid == (3, 3)


def test_a_curriculum_with_sizes_that_a_network_cannot_pad_is_one_line():
    with pytest.raises(ValueError, match=r"does not accept the resolutions 40, 64") as error:
        SSLModel.from_timm("mixer_s16_224", resolutions=[40, 64])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "pool", "layers", "message"),
    [
        ("test_resnet", "cls", 1, r"pool is cls, but ResNet has no tokens and its own pooling; leave out --pool"),
        ("test_resnet", "mean", 1, r"leave out --pool"),
        ("test_convnext", "cls_mean", 1, r"leave out --pool"),
        ("test_vit3", "cls", 1, r"no class token; set --pool mean"),
        ("test_vit", "max", 1, r"pool is 'max'; choose one of cls, mean, cls_mean"),
        ("test_vit", "mean", 2, r"layers is 2, which concatenates class tokens"),
        ("test_vit", "cls", 99, r"pool is cls with layers 99, which VisionTransformer lacks"),
    ],
)
def test_a_pool_that_a_network_lacks_is_one_line(name, pool, layers, message):
    with pytest.raises(ValueError, match=message) as error:
        PooledFeatures(timm.create_model(name, num_classes=0), pool, layers)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_backbone(vit(), tmp_path_factory.mktemp("vit") / "backbone", input_size=64)


@pytest.mark.parametrize("pool", ["cls", "mean", "cls_mean"])
def test_an_export_is_loaded_with_the_pool_that_it_was_made_with(exported, pool, tmp_path):
    done = formats.export(exported, "safetensors", tmp_path / "out", pool=pool)
    config = json.loads((done.path.parent / "config.json").read_text())
    again = load_backbone(done.path.parent)
    with torch.inference_mode():
        features = again.backbone(IMAGES)
        torch.testing.assert_close(features, PooledFeatures(vit(), pool)(IMAGES))
        torch.testing.assert_close(load_backbone(done.path.parent, pool="cls").backbone(IMAGES), vit()(IMAGES))
    assert again.pool == config["pool"] == pool and features.shape[1] == config["num_features"] == done.dimensions


@pytest.mark.slow
def test_an_exported_graph_returns_the_pooled_features(exported, tmp_path):
    done = formats.export(exported, "torch", tmp_path / "out", pool="cls_mean")
    with torch.no_grad():
        found = torch.export.load(done.path).module()(IMAGES)
        torch.testing.assert_close(found, PooledFeatures(vit(), "cls_mean")(IMAGES))
    assert json.loads((tmp_path / "out" / "preprocessing.json").read_text())["pool"] == "cls_mean"


@pytest.mark.slow
def test_evaluate_and_embed_use_the_pool(exported, tmp_path, capsys):
    images = ["--dataset", "photo-patches", "--max_train_samples", "40", "--max_eval_samples", "20"]
    words = ["evaluate", str(exported), *images, "--pool", "cls_mean", "--output", str(tmp_path / "r.json")]
    assert cli.main([*words, "--protocol", "linear", "--layers", "2", "--epochs", "2"]) == 0
    facts = json.loads((tmp_path / "r.json").read_text())
    assert (facts["pool"], facts["layers"]) == ("cls_mean", 2)
    capsys.readouterr()
    assert cli.main([*words, "--protocol", "knn", "--layers", "2"]) == 2
    assert "layers is a setting of linear" in capsys.readouterr().err
    for command in (["embed", str(exported), str(tmp_path)], ["export", str(exported), "--format", "torch"]):
        assert cli.main([*command, "--pool", "mean", "--patches", "--output", str(tmp_path / "x")]) == 2
        assert "pool is mean, but --patches asks for the features before pooling" in capsys.readouterr().err
