"""Two real processes over gloo: they share the images out, draw their own views, and keep one set of weights."""

import json

import pytest

from tests.distributed.launch import launch

pytestmark = pytest.mark.xdist_group("two")  # its processes start once


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch("two_ranks.py", folder)
    assert (folder / "simclr" / "metrics.json").exists(), "the report must not wait for a process that has ended"
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_train_one_model(ranks):
    assert [facts["world_size"] for facts in ranks] == [2, 2]
    assert {facts["wrapped"] for facts in ranks} == {"DistributedDataParallel"}
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert ranks[0]["log"] == ranks[1]["log"]
    assert [entry["resolution"] for entry in ranks[0]["log"]] == [32, 16, 24, 32]
    assert ranks[0]["knn"] == ranks[1]["knn"] and len(ranks[0]["knn"]) == 2
    assert ranks[0]["retrieval"] == ranks[1]["retrieval"] and len(ranks[0]["retrieval"]) == 2


@pytest.mark.slow
def test_ranks_see_disjoint_images_and_draw_different_views(ranks):
    first, second = (set(facts["seen"]) for facts in ranks)
    assert len(first) == len(second) == 32  # 4 steps of 8
    assert not first & second
    for ours, theirs in zip(ranks[0]["drawn"], ranks[1]["drawn"], strict=True):
        assert ours != theirs
    assert len({tuple(step) for facts in ranks for step in facts["drawn"]}) == 8  # other views at every step


@pytest.mark.slow
def test_the_ledger_sums_over_the_ranks(ranks):
    expected = 2 * 8 * sum(ranks[0]["flops_of_an_image"])
    assert ranks[0]["total_flos"] == pytest.approx(expected)
