"""Patch tokens and local views with torch.compile: the same numbers, and no compilation after the warm-up."""

import pytest
import torch
from torch._dynamo.utils import counters

from hf_essl.config import SSLTrainingArguments, ViewArguments
from hf_essl.methods import METHODS, SSLModel
from hf_essl.schedules import Curriculum
from hf_essl.training.layout import compile_backbones, warm_up_backbones
from hf_essl.views.tokens import kept_tokens


@pytest.mark.slow
def test_compiled_sizes_have_the_eager_numbers_and_are_compiled_before_the_run(tmp_path):
    torch.manual_seed(0)
    settings = {"method_args": METHODS["byol"].small_args, "backbone_args": {"patch_size": 8}}
    model = SSLModel.from_timm("test_vit", "byol", resolutions=(32,), **settings).train()
    views, pair = ViewArguments(resolution=32, min_tokens=0.25, token_stages=3), torch.randn(2, 4, 3, 32, 32)
    kept = {share: kept_tokens(torch.arange(8), 16, share).view(4, 2, -1) for share in (0.25, 0.625)} | {1.0: None}
    expected = {share: model(*pair, tokens=tokens)["loss"].detach() for share, tokens in kept.items()}
    args = SSLTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, torch_compile=True, torch_compile_backend="eager"
    )
    compile_backbones(model, args)
    warm_up_backbones(model, 4, Curriculum.with_warmup(views, 0.0), views)
    compiled = counters["stats"]["unique_graphs"]
    for share, tokens in kept.items():
        torch.testing.assert_close(model(*pair, tokens=tokens)["loss"].detach(), expected[share])
    assert counters["stats"]["unique_graphs"] == compiled > 0


@pytest.mark.slow
def test_compiled_local_views_have_the_eager_numbers_and_are_compiled_before_the_run(tmp_path):
    torch.manual_seed(0)
    settings = {"method_args": METHODS["dino"].small_args, "backbone_args": {"patch_size": 8}}
    model = SSLModel.from_timm("test_vit", "dino", resolutions=(16, 32), **settings).train()
    views = ViewArguments(resolution=32, local_views=3, local_resolution=16)
    batch = {"first": torch.randn(4, 3, 32, 32), "second": torch.randn(4, 3, 32, 32)}
    batch["local"] = torch.randn(3, 4, 3, 16, 16)
    expected = model(**batch)["loss"].detach()
    args = SSLTrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, torch_compile=True, torch_compile_backend="eager"
    )
    compile_backbones(model, args)
    warm_up_backbones(model, 4, Curriculum.with_warmup(views, 0.0), views)
    compiled = counters["stats"]["unique_graphs"]
    torch.testing.assert_close(model(**batch)["loss"].detach(), expected)
    assert counters["stats"]["unique_graphs"] == compiled > 0
