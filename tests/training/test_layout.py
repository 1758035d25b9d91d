"""SyncBatchNorm and memory format, without a GPU: layers are converted, not run; memory and bfloat16 of a CPU."""

import ctypes
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from hf_essl.config import SSLTrainingArguments
from hf_essl.methods import METHODS, SSLModel
from hf_essl.training.layout import prepare_layers


def prepared(method, device="cuda", **settings):
    model = SSLModel.from_timm("test_resnet", method, method_args=METHODS[method].small_args)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = {"device": torch.device(device), "world_size": 2, "sync_batchnorm": True, "channels_last": True, **settings}
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


@pytest.mark.parametrize("asked", [True, False])
def test_weights_are_channels_last_where_asked(asked):
    weight = prepared("byol", channels_last=asked).backbone.conv1[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == asked


FAULTS = """
import ctypes, json, resource, sys
import torch
from hf_essl.training.layout import disable_malloc_trim

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(4 * 2**20)  # 16 MB, given back at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert ctypes.CDLL(None).mallopt(-3, 2**20)  # M_MMAP_THRESHOLD: no growth of the threshold by itself
handed_back, kept = faults(), disable_malloc_trim()
faults()
print(json.dumps([handed_back, kept, faults()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_not_faulted_in_again():
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, stdout=subprocess.PIPE, text=True)
    handed_back, kept, faults = json.loads(done.stdout)
    assert kept and handed_back > 150  # some 4,096 pages of 4 kB each time, or 8 of 2 MB
    assert faults < handed_back / 10


@pytest.mark.parametrize("capable", [True, False])
def test_bf16_is_off_on_a_cpu_without_it(capable, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": capable, "avx2": True})
    args = SSLTrainingArguments(output_dir=str(tmp_path), bf16=True, use_cpu=True)
    assert args.bf16 == capable
    assert ("bf16 is off" in caplog.text) != capable
