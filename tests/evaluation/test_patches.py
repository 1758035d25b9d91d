"""Features of patches, against timm's own networks."""

import datasets
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from hf_essl import cli, export_backbone, load_backbone
from hf_essl.config import DataArguments
from hf_essl.evaluation.embed import embed
from hf_essl.evaluation.patches import PatchFeatures
from hf_essl.evaluation.search import Embeddings
from hf_essl.hub import formats


def network(name):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0).eval()


@pytest.mark.parametrize(
    ("name", "grid"), [("test_vit", (10, 10)), ("test_resnet", (5, 5)), ("test_convnext", (5, 5))]
)
@torch.inference_mode()
def test_patches_in_the_order_of_the_pixels(name, grid):
    """`forward_intermediates` of timm gives the last map, B x D x rows x columns."""
    model, images = network(name), torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    patches = PatchFeatures(model, 160)
    features = patches(images)
    assert patches.grid == grid
    maps = model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[-1]
    torch.testing.assert_close(features, maps.permute(0, 2, 3, 1).flatten(1, 2))


def test_a_network_without_patches_is_refused():
    with pytest.raises(ValueError, match="has no patch features"):
        PatchFeatures(nn.Flatten(), 32)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    model = timm.create_model("test_vit", num_classes=0, img_size=64)
    return export_backbone(model, tmp_path_factory.mktemp("vit") / "backbone", input_size=64)


def test_embedded_patches_load_as_lists_of_vectors(vit, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.new("RGB", (64, 64), (index * 80, 9, 0)).save(tmp_path / "images" / f"{index}.png")
    output = tmp_path / "p.parquet"
    done = embed(str(vit), DataArguments(dataset=str(tmp_path / "images")), output, patches=True, crop_pct=1.0)
    rows = datasets.Dataset.from_parquet(str(output), cache_dir=str(tmp_path / "cache")).with_format("torch")
    assert (done.rows, done.dimensions, rows[0]["embedding"].shape) == (3, 64, (16, 64))
    loaded = load_backbone(vit, crop_pct=1.0)
    with torch.inference_mode():
        expected = loaded.backbone.forward_features(loaded.preprocess([tmp_path / "images" / "1.png"]))[0, 1:]
    row = next(row for row in rows if row["path"] == "1.png")
    torch.testing.assert_close(row["embedding"], expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="without --patches"):
        Embeddings.read(output)


@pytest.mark.slow
def test_an_exported_graph_returns_patches(vit, tmp_path):
    done = formats.export(vit, "torch", tmp_path / "out", patches=True)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = torch.export.load(done.path).module()(images)
        torch.testing.assert_close(found, load_backbone(vit).backbone.forward_features(images)[:, 1:])


def test_safetensors_hold_the_whole_network(vit, tmp_path, capsys):
    assert cli.main(["export", str(vit), "--format", "safetensors", "--output", str(tmp_path / "x"), "--patches"]) == 2
    assert "leave out --patches" in capsys.readouterr().err
