from itertools import chain, islice

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from hf_essl.config import DataArguments
from hf_essl.data import NO_LABEL, StreamedImages, as_images, collate, load_images
from tests.data.images import write_parquet


def load(path, **options):
    return load_images(DataArguments(dataset=str(path), image_size=16, streaming=True, **options))


def values(stream, count, workers=0):
    batches = iter(DataLoader(stream, batch_size=10, num_workers=workers, collate_fn=collate))
    taken = list(islice(batches, count // 10))
    assert all(batch["label"].tolist() == [NO_LABEL] * 10 for batch in taken)
    return [value for batch in taken for value in batch["image"][:, 0, 0, 0].tolist()]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """`datasets` pauses five seconds at the end of each pass over interleaved shards."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01)


@pytest.fixture
def shards(tmp_path):
    """Four shards of 20 training images, values 0 to 79, and ten for evaluation, 100 to 109."""
    for shard in range(4):
        path = tmp_path / f"train-{shard:05}-of-00004.parquet"
        write_parquet(path, range(20 * shard, 20 * shard + 20), ["even", "odd"] * 10)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", range(100, 110), ["odd", "even"] * 5)
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_each_pass_shows_every_image_once_in_another_order(shards, workers):
    train = load(shards).train
    assert isinstance(train, StreamedImages) and not hasattr(train, "__len__")
    two_passes = values(train, 160, workers)
    first, second = two_passes[:80], two_passes[80:]
    assert sorted(first) == sorted(second) == list(range(80))
    assert first != second and first != sorted(first)
    assert values(train, 160, workers) == two_passes  # a new start is the same run


def test_seed(shards):
    args = DataArguments(dataset=str(shards), image_size=16, streaming=True)
    one, two = (values(load_images(args, seed=seed).train, 80) for seed in (1, 2))
    assert one != two and sorted(one) == sorted(two)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_images(shards, processes, workers):
    train = load(shards).train
    parts = [values(train.for_process(rank, processes), 80 // processes, workers) for rank in range(processes)]
    assert sorted(chain(*parts)) == list(range(80))


def test_one_shard_for_several_processes_and_workers(tmp_path):
    write_parquet(tmp_path / "a.parquet", range(40))
    train = load(tmp_path / "a.parquet").train
    parts = [values(train.for_process(rank, 2), 20, workers=2) for rank in range(2)]
    assert sorted(chain(*parts)) == list(range(40))


def test_bank_and_evaluation_images_are_in_memory(shards):
    images = load(shards, max_eval_samples=5)
    assert images.train.labels is None and next(iter(images.train))["label"] == NO_LABEL
    assert sorted(images.bank.images[:, 0, 0, 0].tolist()) == list(range(80))
    assert images.bank.classes == images.eval.classes == ["even", "odd"]
    assert torch.equal(images.bank.images[:, 0, 0, 0] % 2, images.bank.labels)
    assert images.eval.images[:, 0, 0, 0].tolist() == [100, 102, 104, 106, 108]
    assert images.eval.labels.tolist() == [1] * 5


def test_first_images_only(shards):
    images = load(shards, max_train_samples=30)
    assert sorted(values(images.train, 30)) == list(range(30))
    assert sorted(images.bank.images[:, 0, 0, 0].tolist()) == list(range(30))


def test_folder_of_images(labeled, unlabeled):
    images = load(labeled)
    assert sorted(values(images.train, 20)) == list(range(20))
    assert images.bank.classes == ["ant", "bee"] and images.bank.labels.bincount().tolist() == [10, 10]
    assert load(unlabeled).bank is None and load(unlabeled).eval is None
    assert sorted(values(as_images(unlabeled, DataArguments(image_size=16, streaming=True)), 10)) == list(range(10))


def test_unreadable_images_are_skipped_and_reported(damaged):
    images = load(damaged, max_unreadable=0.2)
    once = list(islice(images.train, 17))
    assert sorted(int(sample["image"][0, 0, 0]) for sample in once) == [v for v in range(20) if v not in (3, 9, 19)]
    names = [one.name for sample in once for one in sample["unreadable"]]
    assert sorted(names) == [str(damaged / part) for part in ("ant/03.png", "ant/09.png", "bee/19.png")]
    assert len(images.bank) == 17


def test_unreadable_image_without_a_path_has_one_name(tmp_path):
    write_parquet(tmp_path / "a.parquet", [b"truncated", *range(1, 10)])
    samples = list(islice(load(tmp_path / "a.parquet").train, 18))  # two passes
    names = [one.name for sample in samples for one in sample["unreadable"]]
    assert len(names) == 2 and len(set(names)) == 1


def test_no_image_is_readable(unlabeled, monkeypatch):
    for path in unlabeled.iterdir():
        path.write_bytes(b"")
    stream = load(unlabeled).train
    with pytest.raises(ValueError, match=r"no image of unlabeled is readable among 10 .*empty file"):
        next(iter(stream))
    monkeypatch.setattr("hf_essl.data.stream.MAX_IN_A_ROW", 5)
    with pytest.raises(ValueError, match=r"no image of unlabeled is readable among 5 in a row .*; check the dataset"):
        next(iter(stream))


def test_rejections(shards, labeled):
    for match, path, options in (
        ("image_column is img; the columns of", shards, {"image_column": "img"}),
        ("eval_holdout is 0.1 with streaming: true", labeled, {"eval_holdout": 0.1}),
        ("train_split is all; the splits of", shards, {"train_split": "all"}),
        ("cache is memory with streaming: true", shards, {"cache": "memory"}),
    ):
        with pytest.raises(ValueError, match=match):
            load(path, **options)
