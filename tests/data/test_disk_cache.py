"""The cache on disk: equal to decoding, built once by one process, resumed, checked, and small in memory."""

import json
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import DataLoader

from hf_essl.config import DataArguments
from hf_essl.data import DecodedImages, DiskImages, as_images, collate, disk_cache, load_images
from hf_essl.data.disk_cache import verify


class Grey:
    """Images of 8 px whose value is their index; each read is a line of a file, whichever process makes it."""

    name, classes, fingerprint = "grey", None, "ten-greys"

    def __init__(self, log, count=10, stop_at=None, seconds=0.0):
        self.log, self.count, self.stop_at, self.seconds = log, count, stop_at, seconds

    def __len__(self):
        return self.count

    def read(self, index):
        if index == self.stop_at:
            raise KeyboardInterrupt
        time.sleep(self.seconds)
        with self.log.open("a") as file:
            file.write(f"{index}\n")
        return torch.full((3, 8, 8), index, dtype=torch.uint8), None

    def read_labels(self):
        return None


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(disk_cache, "CHUNK", 4)


def build(source, root):
    return disk_cache.disk_cache(DecodedImages(source, 8), root, 0.5)


def reads(log):
    return sorted(map(int, log.read_text().split())) if log.exists() else []


def shown(dataset):
    return dataset.__getitems__(range(len(dataset)))["image"][:, 0, 0, 0].tolist()


def load(path, root, **options):
    return load_images(DataArguments(dataset=str(path), image_size=16, cache_dir=str(root), **options)).train


def folders(root):
    return [path for path in (root / "hf_essl").iterdir() if path.is_dir()]


def test_equals_the_cache_in_memory(torn, tmp_path):
    disk, memory = (load(torn, tmp_path / "root", cache=cache, max_unreadable=0.2) for cache in ("disk", "memory"))
    assert isinstance(disk, DiskImages) and len(disk) == len(memory) == 17
    assert (disk.left_out, disk.classes, disk.name) == (3, memory.classes, memory.name)
    assert torch.equal(disk.labels, memory.labels)
    order = [16, 0, 5, 5]
    ours, theirs = disk.__getitems__(order), memory.__getitems__(order)
    assert torch.equal(ours["image"], theirs["image"]) and torch.equal(ours["label"], theirs["label"])
    assert collate(ours) is ours and ours["unreadable"] == []
    assert torch.equal(disk[8]["image"], memory[8]["image"]) and disk[8]["label"] == memory[8]["label"]
    with pytest.raises(IndexError):
        disk[17]


def test_lies_with_the_other_caches_of_datasets_by_default(heap):
    images = load_images(DataArguments(dataset=str(heap), image_size=16, cache="disk")).train
    assert images.path.parents[2] == Path(os.environ["HF_HOME"]) / "datasets"


def test_is_built_once_and_told(tmp_path, capsys):
    build(Grey(tmp_path / "log"), tmp_path)
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("caching grey on disk: 10 images at 8 px, 0.0 GB in ") and len(told) == 2
    assert shown(build(Grey(tmp_path / "log", stop_at=0), tmp_path)) == list(range(10))  # any read would stop it
    assert reads(tmp_path / "log") == list(range(10)) and capsys.readouterr().err == ""
    assert [path.name.startswith("grey-8px-") for path in folders(tmp_path)] == [True]


def test_other_images_have_another_cache(heap, tmp_path, write_image):
    assert shown(load(heap, tmp_path, cache="disk")) == list(range(10))
    assert shown(load(heap, tmp_path, cache="disk", max_train_samples=3)) == [0, 1, 2]
    write_image(heap / "4.png", 200)
    os.utime(heap / "4.png", (1, 1))  # whatever the clock's grain is
    assert shown(load(heap, tmp_path, cache="disk")) == [0, 1, 2, 3, 200, 5, 6, 7, 8, 9]
    assert load_images(
        DataArguments(dataset=str(heap), image_size=8, cache="disk", cache_dir=str(tmp_path))
    ).train.__getitems__([0])["image"].shape == (1, 3, 8, 8)
    assert len(folders(tmp_path)) == 4


def test_goes_on_where_it_was_interrupted(tmp_path, small_chunks, capsys):
    with pytest.raises(KeyboardInterrupt):
        build(Grey(tmp_path / "log", stop_at=9), tmp_path)
    assert not [path for path in folders(tmp_path) if not path.name.endswith(".building")]
    (tmp_path / "log").unlink()
    assert shown(build(Grey(tmp_path / "log"), tmp_path)) == list(range(10))
    assert reads(tmp_path / "log") == [8, 9]
    assert "10 images at 8 px, 8 of them there already" in capsys.readouterr().err
    verify(folders(tmp_path)[0])


@pytest.mark.parametrize(
    ("damage", "again"), [("line", [4, 5, 6, 7, 8, 9]), ("images", range(10)), ("gone", range(10))]
)
def test_does_not_go_on_from_what_is_torn(tmp_path, small_chunks, damage, again):
    with pytest.raises(KeyboardInterrupt):
        build(Grey(tmp_path / "log", stop_at=9), tmp_path)
    (tmp_path / "log").unlink()
    (scratch,) = folders(tmp_path)
    if damage == "line":
        journal = scratch / "journal.jsonl"
        journal.write_text(journal.read_text()[:-20])
    elif damage == "images":
        os.truncate(scratch / "images.u8", 5 * 3 * 8 * 8)
    else:
        (scratch / "images.u8").unlink()
    assert shown(build(Grey(tmp_path / "log"), tmp_path)) == list(range(10))
    assert reads(tmp_path / "log") == list(again)


def test_unreadable_images_are_named_at_every_opening(torn, tmp_path, caplog):
    for _ in range(2):
        caplog.clear()
        assert load(torn, tmp_path, cache="disk", max_unreadable=0.2).left_out == 3
        messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        named = [message for message in messages if message.startswith("unreadable image")]
        assert [name in message for name, message in zip(("03.png", "09.png", "19.png"), named, strict=True)] == [
            True
        ] * 3
    with pytest.raises(ValueError, match=r"3 of 20 images are unreadable .*max_unreadable 0.1"):
        load(torn, tmp_path, cache="disk", max_unreadable=0.1)


def test_too_many_unreadable_images_stop_the_building_which_goes_on_later(torn, tmp_path, small_chunks):
    with pytest.raises(ValueError, match=r"2 of 20 images are unreadable .*max_unreadable 0.05"):
        load(torn, tmp_path, cache="disk", max_unreadable=0.05)
    images = load(torn, tmp_path, cache="disk", max_unreadable=0.2)
    assert shown(images) == [value for value in range(20) if value not in (3, 9, 19)]


def test_nothing_readable(heap, tmp_path):
    for path in heap.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"10 of 10 images are unreadable \(.*empty file"):
        load(heap, tmp_path, cache="disk", max_unreadable=0.99)


def test_a_damaged_cache_is_built_anew(tmp_path, caplog):
    images = build(Grey(tmp_path / "log"), tmp_path)
    os.truncate(images.path, 100)
    assert shown(build(Grey(tmp_path / "log"), tmp_path)) == list(range(10))
    assert "is damaged, it is built anew" in caplog.text
    images.path.with_name("cache.json").write_text("{")
    assert shown(build(Grey(tmp_path / "log"), tmp_path)) == list(range(10))
    assert len(reads(tmp_path / "log")) == 30


def test_contents_can_be_verified(tmp_path, small_chunks):
    images = build(Grey(tmp_path / "log"), tmp_path)
    verify(images.path.parent)
    facts = json.loads(images.path.with_name("cache.json").read_text())
    assert (facts["count"], facts["image_size"], len(facts["checksums"])) == (10, 8, 3)
    with images.path.open("r+b") as file:
        file.seek(9 * 3 * 8 * 8)
        file.write(b"\0")
    with pytest.raises(ValueError, match=r"images 8 to 9 of the disk cache .* differ from their checksum; delete"):
        verify(images.path.parent)


def test_a_dataset_of_ones_own_needs_a_fingerprint(tmp_path):
    class Squares(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return torch.full((3, 8, 8), index, dtype=torch.uint8), 7

    args = DataArguments(image_size=8, cache="disk", cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"a Squares does not say which images it holds; give it an attribute"):
        as_images(Squares(), args)
    told = Squares()
    told.fingerprint = "squares-1"
    images = as_images(told, args)
    assert shown(images) == [0, 1, 2] and images.labels.tolist() == [7, 7, 7]


def test_a_disk_too_small_is_told_before_decoding(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"10 images at image_size 8 need 0\.0 GB.*set cache_dir to a larger disk"):
        build(Grey(tmp_path / "log"), tmp_path)
    assert reads(tmp_path / "log") == []


def in_processes(sources, root):
    """Starts a process for each source that builds and writes what it sees."""
    context = multiprocessing.get_context("fork")

    def work(number, source):
        (root / f"seen-{number}").write_text(json.dumps(shown(build(source, root))))

    started = [context.Process(target=work, args=pair) for pair in enumerate(sources)]
    for process in started:
        process.start()
    return started


def test_one_process_builds_and_the_others_wait(tmp_path, small_chunks, capfd):
    started = in_processes([Grey(tmp_path / "log", seconds=0.05)] * 3, tmp_path)
    for process in started:
        process.join(30)
    assert [process.exitcode for process in started] == [0, 0, 0]
    assert reads(tmp_path / "log") == list(range(10))
    assert [json.loads((tmp_path / f"seen-{i}").read_text()) for i in range(3)] == [list(range(10))] * 3
    told = capfd.readouterr().err
    assert told.count("caching grey on disk: 10 images") == 1
    assert told.count("waiting for another process, which builds") == 2


def test_a_builder_that_is_killed_is_replaced(tmp_path, small_chunks):
    (builder,) = in_processes([Grey(tmp_path / "log", seconds=0.1)], tmp_path)
    deadline = time.monotonic() + 20
    while not list(tmp_path.glob("hf_essl/*.building/journal.jsonl")) or len(reads(tmp_path / "log")) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(builder.pid, signal.SIGKILL)
    builder.join(10)
    (tmp_path / "log").unlink()
    assert shown(build(Grey(tmp_path / "log"), tmp_path)) == list(range(10))
    assert 0 not in reads(tmp_path / "log")


def test_workers_forked_and_spawned_read_it(tmp_path):
    images = build(Grey(tmp_path / "log"), tmp_path)
    shown(images)  # the file is open
    loader = DataLoader(images, 5, num_workers=2, collate_fn=collate)
    assert [batch["image"][:, 0, 0, 0].tolist() for batch in loader] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert shown(pickle.loads(pickle.dumps(images))) == list(range(10))


def test_reading_a_large_cache_holds_little_memory(tmp_path):
    """A sparse file of 600 MB, read whole at random; a memory map, whose pages count, shows that this tells."""
    size, count = 64, 50_000
    path = tmp_path / "images.u8"
    with path.open("wb") as file:
        file.truncate(count * 3 * size * size)
    images = DiskImages(path, size, np.arange(count), None, None, "sparse")
    mapped = np.memmap(path, dtype=np.uint8, mode="r").reshape(count, 3, size, size)
    order = np.random.default_rng(0).permutation(count).reshape(-1, 250)

    def grown(read):
        before = psutil.Process().memory_info().rss
        for batch in order:
            read(batch)
        return (psutil.Process().memory_info().rss - before) / 1e6

    assert grown(images.__getitems__) < 50
    assert grown(mapped.__getitem__) > 500


def test_a_file_cut_short_while_it_is_read_is_told(tmp_path):
    images = build(Grey(tmp_path / "log"), tmp_path)
    shown(images)
    os.truncate(images.path, 5 * 3 * 8 * 8)
    with pytest.raises(OSError, match="ends before image 5; the next run builds it anew"):
        shown(images)
