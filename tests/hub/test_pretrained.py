"""A whole method saved, pushed to a Hub on this machine, and built again."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hf_essl import SSLModel, export_backbone, load_backbone
from hf_essl.methods import METHODS


def trained(method):
    """A model whose state differs from that of a new one."""
    torch.manual_seed(0)
    model = SSLModel.from_timm("test_resnet", method, method_args=METHODS[method].small_args, resolutions=(32, 48))
    for step in range(2):
        model.before_step(step / 2, float(step + 1))
        model(torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32))["loss"].mean().backward()
        model.after_backward()
        model.after_step()
    return model


@pytest.mark.parametrize("method", METHODS)
def test_heads_teacher_and_state_come_back(method, tmp_path):
    model = trained(method)
    model.save_pretrained(tmp_path / "model")
    again = SSLModel.from_pretrained(str(tmp_path / "model"))
    assert type(again) is METHODS[method] and again.resolutions == (32, 48)
    state, expected = again.state_dict(), model.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    loaded = load_backbone(tmp_path / "model")
    views = torch.randn(2, 3, 48, 48)
    assert loaded.resolution == 48 and torch.equal(loaded.backbone(views), model.eval().backbone(views))


def test_a_pushed_method_is_downloaded(hub, tmp_path):
    model = trained("byol")
    model.push_to_hub("ada/byol", commit_message="A method", private=True)
    files = hub.repositories["ada/byol"].files("main")
    assert {"config.json", "model.safetensors"} <= set(files) and hub.repositories["ada/byol"].private
    again = SSLModel.from_pretrained("ada/byol")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_folders_that_hold_no_method_are_one_line(tmp_path):
    backbone = export_backbone(SSLModel.from_timm("test_resnet"), tmp_path / "backbone", input_size=32)
    for folder, message in ((backbone, "holds no method of hf_essl"), (tmp_path, "holds no method")):
        with pytest.raises(ValueError, match=message):
            SSLModel.from_pretrained(str(folder))
    trained("simsiam").save_pretrained(tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"do not fit its config\.json"):
        SSLModel.from_pretrained(str(tmp_path / "torn"))


def test_the_configuration_names_no_folder_of_this_machine(tmp_path):
    backbone = export_backbone(SSLModel.from_timm("test_resnet"), tmp_path / "backbone", input_size=32)
    model = SSLModel.from_timm(str(backbone), pretrained=True)
    model.save_pretrained(tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "config.json").read_text())
    assert facts["backbone"] == "test_resnet"
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert SSLModel.from_pretrained(str(tmp_path / "model")).state_dict().keys() == weights.keys()


def test_a_network_of_ones_own_cannot_be_built_again(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="was passed as an object"):
        SSLModel.from_module(network).save_pretrained(tmp_path)
