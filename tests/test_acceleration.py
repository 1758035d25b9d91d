"""SyncBatchNorm and memory format, without a GPU: layers are converted, not run."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from hf_essl.acceleration import prepare_layers
from hf_essl.methods import METHODS, SSLModel
from tests.methods.small import SMALL_HEADS


def prepared(method, device="cuda", **settings):
    model = SSLModel.from_timm("test_resnet", method, method_args=SMALL_HEADS[method])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = {"device": torch.device(device), "world_size": 2, "sync_batchnorm": True, "channels_last": None, **settings}
    prepare_layers(model, SimpleNamespace(**args))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return model


def synchronised(model):
    return {isinstance(m, torch.nn.SyncBatchNorm) for m in model.modules() if isinstance(m, _BatchNorm)}


@pytest.mark.parametrize("method", METHODS)
def test_batchnorm_is_synchronised_over_gpus_but_for_moco(method):
    model = prepared(method)
    assert synchronised(model) == {method != "mocov2"}
    frozen = [p for name, p in model.named_parameters() if name.startswith("teacher.")]
    assert not any(p.requires_grad for p in frozen)


@pytest.mark.parametrize("settings", [{"world_size": 1}, {"device": "cpu"}, {"sync_batchnorm": False}])
def test_batchnorm_stays_as_it_is_elsewhere(settings):
    assert synchronised(prepared("byol", **settings)) == {False}


@pytest.mark.parametrize(
    ("device", "asked", "expected"),
    [("cuda", None, True), ("cpu", None, False), ("cuda", False, False), ("cpu", True, True)],
)
def test_weights_are_channels_last_on_a_gpu_or_where_asked(device, asked, expected):
    weight = prepared("byol", device, channels_last=asked).backbone.conv1[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == expected
