import logging

import psutil
import pytest
import torch
from torch.utils.data import DataLoader

from hf_essl.config import DataArguments
from hf_essl.data import CachedImages, Unreadable, UnreadableLog, collate, load_images


def load(path, **options):
    return load_images(DataArguments(dataset=str(path), image_size=16, **options)).train


def shown(dataset):
    return [int(dataset[index]["image"][0, 0, 0]) for index in range(len(dataset))]


class TestReplacement:
    def test_next_readable_image_stands_in_and_is_reported(self, torn):
        images = load(torn)
        assert shown(images) == [0, 1, 2, 4, 4, 5, 6, 7, 8, 10, *range(10, 19), 0]
        sample = images[9]  # the last ant: its stand-in is a bee, and so is the label
        assert sample["label"] == 1 and images.labels[9] == 0
        assert sample["unreadable"] == [Unreadable(9, str(torn / "ant" / "09.png"), "empty file")]
        assert images[10]["unreadable"] == []

    def test_batch_keeps_its_size(self, torn):
        batches = list(DataLoader(load(torn), 10, num_workers=2, collate_fn=collate))
        assert [len(batch["image"]) for batch in batches] == [10, 10]
        assert [[one.index for one in batch["unreadable"]] for batch in batches] == [[3, 9], [19]]

    def test_nothing_readable(self, heap):
        for path in heap.iterdir():
            path.write_bytes(b"")
        with pytest.raises(ValueError, match=r"no image of heap is readable: .*png: empty file"):
            load(heap)[4]


class TestCache:
    def test_equals_decoding(self, classes):
        plain, cached = load(classes), load(classes, cache="memory")
        assert isinstance(cached, CachedImages)
        assert len(cached) == len(plain) and cached.classes == plain.classes
        assert torch.equal(cached.labels, plain.labels)
        for index in range(len(plain)):
            assert torch.equal(cached[index]["image"], plain[index]["image"])
            assert cached[index]["label"] == plain[index]["label"]

    def test_batch_is_gathered_in_one_go(self, classes):
        cached = load(classes, cache="memory")
        batch = cached.__getitems__([5, 0, 19])
        assert batch["image"].shape == (3, 3, 16, 16) and batch["label"].tolist() == [0, 0, 1]
        assert batch["image"][:, 0, 0, 0].tolist() == [5, 0, 19]
        assert collate(batch) is batch
        loaded = next(iter(DataLoader(cached, sampler=[5, 0, 19], batch_size=3, collate_fn=collate)))
        assert torch.equal(loaded["image"], batch["image"])

    def test_cache_on_a_device(self, classes):
        args = DataArguments(dataset=str(classes), image_size=16, cache="device")
        assert load_images(args, device="cpu").train.images.device.type == "cpu"

    def test_without_labels(self, heap):
        assert set(load(heap, cache="memory").__getitems__([1])) == {"image", "unreadable"}

    def test_more_than_a_chunk(self, tmp_path, write_parquet, monkeypatch):
        monkeypatch.setattr("hf_essl.data.cache.CHUNK", 7)
        write_parquet(tmp_path / "a.parquet", range(30), list(range(30)))
        assert shown(load(tmp_path / "a.parquet", cache="memory")) == list(range(30))

    def test_unreadable_images_are_left_out_and_named(self, torn, monkeypatch, caplog):
        monkeypatch.setattr("hf_essl.data.cache.CHUNK", 4)
        cached = load(torn, cache="memory", max_unreadable=0.2)
        assert cached.left_out == 3
        assert shown(cached) == [value for value in range(20) if value not in (3, 9, 19)]
        assert cached.labels.tolist() == [int(value >= 10) for value in shown(cached)]
        messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert [message for message in messages if "unreadable image" in message] == messages[-3:]
        assert [name in message for name, message in zip(("03.png", "09.png", "19.png"), messages[-3:], strict=True)]

    def test_too_many_unreadable_images(self, torn):
        with pytest.raises(
            ValueError, match=r"3 of 20 images are unreadable \(.*03.png: .*max_unreadable 0.1"
        ) as error:
            load(torn, cache="memory", max_unreadable=0.1)
        assert "\n" not in str(error.value)

    def test_refused_before_decoding_where_memory_lacks(self, torn, monkeypatch):
        needed = 20 * 3 * 1000 * 1000  # bytes

        def free(available):
            monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Free", (), {"available": available}))

        args = DataArguments(dataset=str(torn), image_size=1000, cache="memory", max_unreadable=0)
        free(needed / 0.81)
        with pytest.raises(
            ValueError, match=r"20 images at image_size 1000 need 0\.1 GB, above 80% of the 0\.1 GB free"
        ):
            load_images(args)
        free(needed / 0.79)
        with pytest.raises(ValueError, match="of 20 images are unreadable"):  # so it had begun to decode
            load_images(args)


class TestUnreadableLog:
    images = tuple(Unreadable(index, f"{index}.jpg", "torn") for index in range(2000))

    def test_counts_an_image_once(self, caplog):
        log = UnreadableLog(100, 0.02)
        for _ in range(5):
            log.update(list(self.images[:2]))
        assert len(log.found) == 2
        assert [record.getMessage() for record in caplog.records] == [
            "unreadable image 0.jpg: torn",
            "unreadable image 1.jpg: torn",
        ]
        with pytest.raises(ValueError, match=r"3 of 100 images .*0.jpg: torn, 1.jpg: torn.* max_unreadable 0.02"):
            log.update(list(self.images[:3]))

    def test_none_allowed(self):
        log = UnreadableLog(1_000_000, 0.0)
        log.update([])
        with pytest.raises(ValueError, match="1 of 1000000 images"):
            log.update(list(self.images[:1]))

    def test_stream_is_judged_after_a_thousand(self):
        log = UnreadableLog(None, 0.1)
        log.update(list(self.images[:200]), seen=700)
        with pytest.raises(ValueError, match="200 of 1000 images are unreadable"):
            log.update([], seen=100)
        log = UnreadableLog(None, 0.1)
        log.update(list(self.images[:100]), seen=900)
        with pytest.raises(ValueError, match="takes seen="):
            log.update([])
