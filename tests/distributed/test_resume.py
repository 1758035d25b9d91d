"""Interrupted and resumed equals never interrupted on two processes, bit for bit."""

import pytest
import torch

from hf_essl.methods import METHODS
from tests.distributed.launch import launch

pytestmark = pytest.mark.xdist_group("resume")  # its processes start once


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resumed")
    launch("resumed_ranks.py", folder, *METHODS)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_resumed_equals_never_interrupted_on_two_processes(method, ranks):
    first, second = (rank[method] for rank in ranks)
    for facts in (first, second):
        assert facts["world_size"] == 2 and facts["wrapped"] == "DistributedDataParallel"
        assert facts["steps"] == (12, 12)
    for name, value in first["whole"].items():
        assert torch.equal(value, first["resumed"][name]), name
    for facts in (first, second):  # the probe takes all processes' features, so it is one
        torch.testing.assert_close(facts["resumed_probe"], first["whole_probe"], rtol=0, atol=0)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in first["whole"].items():  # a rank's running statistics are its own until the next step
        assert name.endswith(statistics) or torch.equal(value, second["whole"][name]), name
    assert first["knn"] == second["knn"] and len(first["knn"]) == 2
