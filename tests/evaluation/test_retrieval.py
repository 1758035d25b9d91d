"""Evidence without labels: view retrieval and nearest neighbors against brute force."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, Features, Image
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from hf_essl.config import DataArguments, SSLTrainingArguments, ViewArguments
from hf_essl.evaluation.nearest import NeighborLog, find_neighbors, nearest_in_blocks
from hf_essl.evaluation.retrieval import FixedViews, measure_retrieval, view_retrieval
from hf_essl.trainer import SSLTrainer
from tests.helpers import patches, small_trainer


@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 10**6))
def test_retrieval_is_that_of_a_loop(count, width, seed):
    torch.manual_seed(seed)
    first = torch.randn(count, width)
    second = first + torch.randn(count, width)
    hits = 0
    for image in range(count):
        cosines = [F.cosine_similarity(first[image], second[other], dim=0) for other in range(count)]
        hits += all(cosines[image] > cosine for other, cosine in enumerate(cosines) if other != image)
    if width > 1:  # with one dimension, rounding decides between equal cosines
        assert view_retrieval(first, second) == pytest.approx(100 * hits / count, abs=100 / count * 0.5)


def test_retrieval_by_hand():
    first = torch.eye(3)
    assert view_retrieval(first, first) == 100
    assert view_retrieval(first, first.roll(1, 0)) == 0
    assert view_retrieval(torch.ones(3, 2), torch.ones(3, 2)) == 0, "one point for all images is no hit"
    with pytest.raises(ValueError, match="must be N x D with N at least 2"):
        view_retrieval(torch.ones(1, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match="not finite"):
        view_retrieval(torch.full((2, 2), torch.nan), torch.ones(2, 2))


def test_a_view_depends_on_the_position_only():
    """Not on the batches in which the images come, nor on torch's random state."""
    images = torch.randint(0, 256, (6, 3, 24, 24), dtype=torch.uint8)
    args, ones = ViewArguments(resolution=16, resolution_step=8), torch.ones(6)

    def views(kind, *sizes):
        torch.manual_seed(sum(sizes))
        transform = FixedViews(args, (0, 0, 0), (1, 1, 1), kind)
        return torch.cat([transform(*part) for part in zip(images.split(sizes), ones.split(sizes), strict=True)])

    whole = views(0, 6)
    torch.testing.assert_close(views(0, 2, 1, 3), whole)
    assert not torch.allclose(views(1, 6), whole)


def test_at_most_512_images_are_compared():
    asked = []

    def extract(images, indices, transform):
        asked.append(list(indices))
        return torch.eye(len(indices)), None

    assert measure_retrieval(extract, range(2000), lambda kind: None) == 100
    assert len(asked) == 2 and asked[0] == asked[1] and len(asked[0]) == 512


@pytest.mark.parametrize("rows", [1, 3, 8, 20, 50])
def test_neighbors_are_those_of_a_sort(rows):
    """In blocks of any size."""
    torch.manual_seed(0)
    features = torch.randn(20, 5)
    cosines, indices = nearest_in_blocks(lambda: features.split(rows), [3, 7], 4)
    for row, query in enumerate((3, 7)):
        all_cosines = F.cosine_similarity(features[query][None], features)
        order = [index for index in all_cosines.argsort(descending=True).tolist() if index != query][:4]
        assert indices[row].tolist() == order
        torch.testing.assert_close(cosines[row], all_cosines[order])


def test_neighbors_of_few_images_and_after_a_resume(tmp_path):
    assert find_neighbors(torch.ones(1, 3), [0]) is None
    found = find_neighbors(torch.randn(3, 4), [5, 6, 9])
    assert found.queries == [5, 6, 9] and all(len(some) == 2 for some in found.nearest)
    first = NeighborLog(tmp_path)
    first.record(found, step=0, writes=True)
    resumed = NeighborLog(tmp_path)
    later = find_neighbors(torch.randn(3, 4), [5, 6, 9])
    resumed.record(later, step=10, writes=True)
    assert resumed.start() == found, "it survives in the folder of the run"
    resumed.record(find_neighbors(torch.randn(2, 4), [1, 2]), step=11, writes=True)
    assert resumed.start() is None, "another set of images is not compared with it"


@pytest.mark.parametrize("labeled", [True, False])
def test_a_run_has_evidence_with_and_without_labels(labeled, tmp_path):
    train, held = patches("train", 96), patches("validation", 32)
    if not labeled:
        train.labels = held.labels = None
    trainer = small_trainer(tmp_path, train=train, held=held, max_steps=2)
    before = trainer.evaluate()
    again = trainer.evaluate()
    assert before["eval_retrieval"] == again["eval_retrieval"] and 0 <= before["eval_retrieval"] <= 100
    assert ("eval_knn_accuracy" in before) == labeled
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_retrieval" in entry]
    assert [entry["step"] for entry in evaluations][-2:] == [0, 2]
    logged = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == [1, 2], "each step of a short run is logged"


def test_fewer_images_than_one_comparison_need_no_more(tmp_path):
    trainer = small_trainer(tmp_path, held=patches("validation", 2))
    assert trainer.evaluate()["eval_retrieval"] in (0, 50, 100)


def test_two_processes_share_the_views_of_one():
    """Each process takes every second image, and the views are those that one process makes."""
    images = torch.randint(0, 256, (7, 3, 24, 24), dtype=torch.uint8)
    args, aspect = ViewArguments(resolution=16, resolution_step=8), torch.linspace(0.5, 2, 7)
    whole = FixedViews(args, (0, 0, 0), (1, 1, 1), 0)(images, aspect)
    for rank in (0, 1):
        process = SimpleNamespace(process_index=rank, num_processes=2)
        part = FixedViews(args, (0, 0, 0), (1, 1, 1), 0, process)(images[rank::2], aspect[rank::2])
        torch.testing.assert_close(part, whole[rank::2])


def test_a_stream_without_labels_says_that_it_is_not_evaluated(tmp_path, caplog):
    pictures = [{"image": image.permute(1, 2, 0).numpy()} for image in patches("train", 32).images]
    stream = Dataset.from_list(pictures, features=Features({"image": Image()})).to_iterable_dataset()
    trainer = SSLTrainer(
        small_trainer(tmp_path / "model").model,
        SSLTrainingArguments(output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=8, use_cpu=True),
        stream,
        view_args=ViewArguments(resolution=32),
        data_args=DataArguments(image_size=32),
    )
    assert not any(name.startswith("eval_") for name in trainer.evaluate())
    assert "stream: retrieval and RankMe are not measured: a stream without labels" in caplog.text
