import logging
from itertools import islice

import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_essl.config import DataArguments
from hf_essl.data import NO_LABEL, CachedImages, Unreadable, UnreadableLog, collate, load_images, sample_images
from hf_essl.data.cache import free_memory
from tests.data.images import write_parquet


def load(path, **options):
    return load_images(DataArguments(dataset=str(path), image_size=16, **options)).train


def values(dataset):
    return [int(dataset[index]["image"][0, 0, 0]) for index in range(len(dataset))]


class TestReplacement:
    def test_next_readable_image_replaces_an_unreadable_one(self, damaged):
        images = load(damaged)
        assert values(images) == [0, 1, 2, 4, 4, 5, 6, 7, 8, 10, *range(10, 19), 0]
        sample = images[9]  # the last ant: a bee replaces it, and so does the label
        assert sample["label"] == 1 and images.labels[9] == 0
        assert sample["unreadable"] == [Unreadable(9, str(damaged / "ant" / "09.png"), "empty file")]
        assert images[10]["unreadable"] == []

    def test_batch_keeps_its_size(self, damaged):
        batches = list(DataLoader(load(damaged), 10, num_workers=2, collate_fn=collate))
        assert [len(batch["image"]) for batch in batches] == [10, 10]
        assert [[one.index for one in batch["unreadable"]] for batch in batches] == [[3, 9], [19]]

    def test_no_image_is_readable(self, unlabeled, monkeypatch):
        for path in unlabeled.iterdir():
            path.write_bytes(b"")
        with pytest.raises(ValueError, match=r"no image of unlabeled is readable among 10 .*png: empty file"):
            load(unlabeled)[4]
        monkeypatch.setattr("hf_essl.data.dataset.MAX_IN_A_ROW", 5)
        with pytest.raises(ValueError, match=r"no image of unlabeled is readable among 5 in a row"):
            load(unlabeled)[4]


class TestCache:
    def test_equals_decoding(self, labeled):
        plain, cached = load(labeled), load(labeled, cache="memory")
        assert isinstance(cached, CachedImages)
        assert len(cached) == len(plain) and cached.classes == plain.classes
        assert torch.equal(cached.labels, plain.labels)
        for index in range(len(plain)):
            assert torch.equal(cached[index]["image"], plain[index]["image"])
            assert cached[index]["label"] == plain[index]["label"]
        with pytest.raises(IndexError):
            cached[20]

    def test_batch_is_gathered_at_once(self, labeled):
        cached = load(labeled, cache="memory")
        batch = cached.__getitems__([5, 0, 19])
        assert batch["image"].shape == (3, 3, 16, 16) and batch["label"].tolist() == [0, 0, 1]
        assert batch["image"][:, 0, 0, 0].tolist() == [5, 0, 19]
        assert collate(batch) is batch
        loaded = next(iter(DataLoader(cached, sampler=[5, 0, 19], batch_size=3, collate_fn=collate)))
        assert torch.equal(loaded["image"], batch["image"])

    def test_cache_on_a_device(self, labeled):
        args = DataArguments(dataset=str(labeled), image_size=16, cache="device")
        assert load_images(args, device="cpu").train.images.device.type == "cpu"

    @pytest.mark.parametrize("cache", ["none", "memory", "disk"])
    def test_images_without_labels(self, unlabeled, tmp_path, cache):
        images = load(unlabeled, cache=cache, cache_dir=str(tmp_path))
        assert images.labels is None and images[1]["label"] == NO_LABEL
        (batch,) = DataLoader(images, 10, collate_fn=collate)
        assert batch["label"].dtype == torch.int64 and batch["label"].tolist() == [NO_LABEL] * 10

    def test_more_than_a_chunk(self, tmp_path, monkeypatch):
        monkeypatch.setattr("hf_essl.data.cache.CHUNK", 7)
        write_parquet(tmp_path / "a.parquet", range(30), list(range(30)))
        assert values(load(tmp_path / "a.parquet", cache="memory")) == list(range(30))

    def test_unreadable_images_are_left_out_and_named(self, damaged, monkeypatch, caplog):
        monkeypatch.setattr("hf_essl.data.cache.CHUNK", 4)
        cached = load(damaged, cache="memory", max_unreadable=0.2)
        assert cached.left_out == 3
        assert values(cached) == [value for value in range(20) if value not in (3, 9, 19)]
        assert cached.labels.tolist() == [int(value >= 10) for value in values(cached)]
        named = [record.getMessage() for record in caplog.records if "unreadable image" in record.getMessage()]
        assert all(name in line for name, line in zip(("03.png", "09.png", "19.png"), named, strict=True))
        assert {record.levelno for record in caplog.records if record.getMessage() in named} == {logging.WARNING}

    def test_too_many_unreadable_images(self, damaged):
        with pytest.raises(ValueError, match=r"3 of 20 images are .* \(.*03.png: .*max_unreadable 0.1") as error:
            load(damaged, cache="memory", max_unreadable=0.1)
        assert "\n" not in str(error.value)

    def test_too_little_memory_is_reported_before_decoding(self, damaged, monkeypatch):
        needed = 20 * 3 * 1000 * 1000  # bytes
        args = DataArguments(dataset=str(damaged), image_size=1000, cache="memory", max_unreadable=0)
        for available, match in (
            (needed / 0.81, r"20 images at image_size 1000 need 0\.1 GB, above 80% of the 0\.1 GB free"),
            (needed / 0.79, "of 20 images are unreadable"),  # so it has started to decode
        ):
            free = type("Free", (), {"available": available})
            monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: free)
            with pytest.raises(ValueError, match=match):
                load_images(args)


def test_sample_images_are_evenly_spaced(labeled):
    images, aspect = sample_images(load(labeled), 4)
    assert images[:, 0, 0, 0].tolist() == [0, 5, 10, 15] and aspect.tolist() == [1, 1, 1, 1]
    assert sample_images(load(labeled), 30)[0].shape == (20, 3, 16, 16)
    assert sample_images(load(labeled, streaming=True), 4)[0].shape == (4, 3, 16, 16)


@pytest.mark.parametrize("options", [{}, {"cache": "memory"}, {"cache": "disk"}, {"streaming": True}])
def test_every_batch_has_the_aspect_of_each_image(tmp_path, options):
    sizes = [(40, 20), (20, 40), (30, 30), (60, 20)]
    for index, (width, height) in enumerate(sizes):
        Image.new("RGB", (width, height), (index, 0, 0)).save(tmp_path / f"{index}.png")
    images = load(tmp_path, cache_dir=str(tmp_path / "cache"), **options)
    samples = list(islice(images, 4)) if options.get("streaming") else [images[index] for index in range(4)]
    expected = [width / height for width, height in sizes]
    batch = collate(samples)
    assert batch["aspect"].dtype == torch.float32
    assert batch["aspect"].tolist() == pytest.approx([expected[int(image[0, 0, 0])] for image in batch["image"]])
    if options.get("cache"):
        assert images.__getitems__([3, 0])["aspect"].tolist() == pytest.approx([3, 2])


class TestUnreadableLog:
    images = tuple(Unreadable(index, f"{index}.jpg", "truncated") for index in range(2000))

    def test_counts_an_image_once(self, caplog):
        log = UnreadableLog(100, 0.02)
        for _ in range(5):
            log.update(self.images[:2], seen=8)
        assert len(log.found) == 2
        assert [record.getMessage() for record in caplog.records] == [
            "unreadable image 0.jpg: truncated",
            "unreadable image 1.jpg: truncated",
        ]
        with pytest.raises(ValueError, match=r"3 of 100 images .*0.jpg: trunc.*, 1.jpg: trunc.* max_unreadable 0.02"):
            log.update(self.images[:3], seen=7)

    def test_none_allowed(self):
        log = UnreadableLog(1_000_000, 0.0)
        log.update([], seen=10)
        with pytest.raises(ValueError, match="1 of 1000000 images"):
            log.update(self.images[:1], seen=9)

    def test_stream_is_judged_after_a_thousand(self):
        log = UnreadableLog(None, 0.1)
        log.update(self.images[:200], seen=700)
        with pytest.raises(ValueError, match="200 of 1000 images are unreadable"):
            log.update([], seen=100)
        UnreadableLog(None, 0.1).update(self.images[:100], seen=900)


def write_cgroup(folder, limit, used, cached):
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
    return folder


@pytest.mark.parametrize(
    ("limit", "used", "cached", "free"), [(10_000, 7_000, 1_000, 4_000), (5_000, 6_000, 0, 0), ("max", 1, 1, None)]
)
def test_the_limit_of_a_container_counts(limit, used, cached, free, tmp_path):
    found = free_memory(write_cgroup(tmp_path, limit, used, cached))
    assert found == free if free is not None else found > 10**7
