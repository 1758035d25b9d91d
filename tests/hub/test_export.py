"""The exported backbone, loaded by timm and by transformers."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from hf_essl import export_backbone, load_backbone
from hf_essl.data.photo_patches import _photo
from hf_essl.evaluation.features import center_crops
from hf_essl.methods import SSLModel


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = SSLModel.from_timm("test_resnet", method_args={"projector_dim": 16, "predictor_hidden": 8})
    model.train()(torch.randn(8, 3, 64, 64), torch.randn(8, 3, 64, 64))  # BatchNorm statistics of its own
    folder = export_backbone(model, tmp_path_factory.mktemp("run") / "backbone", input_size=64, tag="simsiam_test")
    return model.eval(), folder


def test_timm_and_transformers_give_the_same_features(exported):
    model, folder = exported
    images = torch.randn(2, 3, 64, 64)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    wrapped = AutoModel.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        expected = model.backbone(images)
        assert torch.equal(loaded(images), expected)
        torch.testing.assert_close(wrapped(pixel_values=images).pooler_output, expected)


def test_a_classifier_of_transformers_starts_from_these_weights(exported):
    model, folder = exported
    found = AutoModelForImageClassification.from_pretrained(str(folder), num_labels=3).timm_model.state_dict()
    assert found.keys() - model.backbone.state_dict().keys() == {"fc.weight", "fc.bias"}
    assert all(torch.equal(found[name], value) for name, value in model.backbone.state_dict().items())


@pytest.mark.parametrize(("width", "height"), [(451, 300), (200, 300), (300, 300)])
@pytest.mark.parametrize("crop_pct", [None, 1.0])
def test_an_image_of_any_shape_gives_the_same_features(crop_pct, width, height, exported, tmp_path):
    """Through timm's transform, transformers' processor and ours; the reference is torchvision's own crop."""
    model, _ = exported
    crop = {} if crop_pct is None else {"crop_pct": crop_pct}
    folder = export_backbone(model, tmp_path / "backbone", input_size=64, **crop)
    picture = _photo("chelsea.png").crop((0, 0, width, height))
    short = 73 if crop_pct is None else 64  # floor(64 / 0.875)
    resize = transforms.Resize(short, transforms.InterpolationMode.BILINEAR)
    expected = transforms.Compose([resize, transforms.CenterCrop(64), transforms.ToTensor()])(picture)[None] * 2 - 1

    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = timm.data.resolve_data_config({}, model=loaded)
    facts = {"interpolation": "bilinear", "crop_pct": crop_pct or 0.875, "crop_mode": "center"}
    assert facts.items() <= config.items() and config["input_size"] == (3, 64, 64)
    processor = AutoImageProcessor.from_pretrained(str(folder))
    own = load_backbone(folder)
    for pixels in (
        timm.data.create_transform(**config)(picture)[None],
        processor(picture)["pixel_values"],
        own.preprocess([picture]),
    ):
        torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(own.backbone(expected), model.backbone(expected))


@pytest.mark.parametrize(("width", "height"), [(451, 300), (200, 300)])
def test_the_evaluation_sees_the_same_crop(width, height, exported):
    """The whole photograph, squashed onto a square canvas and cropped there, against timm's transform."""
    _, folder = exported
    picture, own = _photo("chelsea.png").crop((0, 0, width, height)), load_backbone(folder)
    squashed = torch.tensor(np.array(picture.resize((128, 128), Image.Resampling.BICUBIC))).permute(2, 0, 1)
    batch = {"image": squashed[None], "aspect": torch.tensor([width / height])}
    crop = center_crops(own.resolution, own.crop_pct, own.mean, own.std)
    found, expected = crop(batch["image"], batch["aspect"]), own.preprocess([picture])
    assert (found - expected).abs().mean() < 2 * 2 / 255
    with torch.no_grad():
        features, reference = own.backbone(found), own.backbone(expected)
    assert torch.nn.functional.cosine_similarity(features, reference) > 0.99


def test_heads_stay_out_and_the_config_is_our_own(exported):
    _, folder = exported
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["num_features"] == 96 and config["architecture"] == "test_resnet"
    assert "num_classes" not in config.get("model_args", {})
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]
    assert config["pretrained_cfg"]["tag"] == "simsiam_test"
    assert not {"origin_url", "paper_ids", "license"} & set(config["pretrained_cfg"])


def test_exported_twice_into_one_folder_is_whole(exported):
    model, folder = exported
    export_backbone(model, folder, input_size=96)
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["input_size"] == [3, 96, 96]
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]
