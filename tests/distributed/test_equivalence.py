"""One process x 16 images equals two processes x 8: losses, gradients, and after five steps the whole state."""

from functools import cache

import pytest
import torch

from hf_essl.methods import METHODS
from tests.distributed.five_steps import KINDS, train
from tests.distributed.launch import launch

CLOSE = {"atol": 1e-5, "rtol": 1e-5}

pytestmark = pytest.mark.xdist_group("equivalence")  # its processes start once


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("five_steps")
    launch("five_steps.py", folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def ranks(folder, kind):
    ranks = [torch.load(folder / f"{kind}{rank}.pt") for rank in (0, 1)]
    assert [rank["world_size"] for rank in ranks] == [2, 2]
    return [rank["methods"] for rank in ranks]


@cache
def one_process(tokens):
    return {method: train(method, tokens=tokens) for method in METHODS}


@pytest.fixture
def alone(kind):
    return one_process(kind == "tokens")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_each_image_has_the_same_loss(method, alone, ranks):
    for what in ("losses", "embedded"):
        together = torch.cat([rank[method][what] for rank in ranks], dim=1)
        torch.testing.assert_close(together, alone[method][what], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_the_same(method, alone, ranks):
    assert alone[method]["gradients"]
    for rank in ranks:
        torch.testing.assert_close(rank[method]["gradients"], alone[method]["gradients"], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_weights_queue_and_center_agree_after_five_steps(method, alone, ranks):
    first, second = (rank[method]["state"] for rank in ranks)
    assert all(torch.equal(value, second[name]) for name, value in first.items())  # bit for bit between the ranks
    torch.testing.assert_close(first, alone[method]["state"], **CLOSE)
    buffers = {"mocov2": ("queue", "pointer"), "dino": ("center",)}.get(method, ())
    assert all(name in first for name in buffers)
    if method == "mocov2":
        assert int(first["pointer"]) == 2 * 16 * 5 % 40
