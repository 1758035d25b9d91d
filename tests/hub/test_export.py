"""The exported backbone, loaded by timm and by transformers."""

import json

import pytest
import timm
import torch
from transformers import AutoModel

from hf_essl import export_backbone
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
