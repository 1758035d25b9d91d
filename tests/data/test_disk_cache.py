"""The cache on disk: equal to decoding, built once by one process, resumed, and small in memory."""

import json
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
from hf_essl.data import NO_LABEL, DecodedImages, DiskImages, as_images, collate, disk_cache, load_images
from tests.data.images import write_image


class Gray:
    """Images of 8 px whose value is their index; each read adds a line to a file, whichever process makes it."""

    name, classes, fingerprint = "gray", None, "ten-grays"

    def __init__(self, log, stop_at=None, seconds=0.0):
        self.log, self.stop_at, self.seconds = log, stop_at, seconds

    def __len__(self):
        return 10

    def read(self, index):
        if index == self.stop_at:
            raise KeyboardInterrupt
        time.sleep(self.seconds)
        with self.log.open("a") as file:
            file.write(f"{index}\n")
        return torch.full((3, 8, 8), index, dtype=torch.uint8), NO_LABEL

    def read_labels(self):
        return None


@pytest.fixture
def log(tmp_path):
    """The file of the reads of `Gray`, in the folder of its caches."""
    return tmp_path / "log"


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(disk_cache, "CHUNK", 4)


@pytest.fixture
def interrupted(log, small_chunks):
    """The folder of a build that was interrupted at image 9, after two of three chunks."""
    with pytest.raises(KeyboardInterrupt):
        build(Gray(log, stop_at=9))
    log.unlink()
    (scratch,) = folders(log.parent)
    assert scratch.name.endswith(".building")
    return scratch


def build(source):
    return disk_cache.disk_cache(DecodedImages(source, 8), source.log.parent, 0.5)


def reads(log):
    return sorted(map(int, log.read_text().split())) if log.exists() else []


def values(dataset):
    return dataset.__getitems__(range(len(dataset)))["image"][:, 0, 0, 0].tolist()


def load(path, root, **options):
    options = {"image_size": 16, "cache": "disk", "cache_dir": str(root), **options}
    return load_images(DataArguments(dataset=str(path), **options)).train


def folders(root):
    return [path for path in (root / "hf_essl").iterdir() if path.is_dir()]


def test_equals_the_cache_in_memory(damaged, tmp_path):
    disk, memory = (load(damaged, tmp_path, cache=cache, max_unreadable=0.2) for cache in ("disk", "memory"))
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


def test_is_next_to_the_other_caches_of_datasets_by_default(unlabeled):
    images = load_images(DataArguments(dataset=str(unlabeled), image_size=16, cache="disk")).train
    assert images.path.parents[2] == Path(os.environ["HF_HOME"]) / "datasets"


def test_is_built_once_and_reported(log, capsys):
    build(Gray(log))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("caching gray on disk: 10 images at 8 px, 0.0 GB in ") and len(lines) == 2
    assert values(build(Gray(log, stop_at=0))) == list(range(10))  # any read would stop it
    assert reads(log) == list(range(10)) and capsys.readouterr().err == ""
    assert [path.name.startswith("gray-8px-") for path in folders(log.parent)] == [True]


def test_a_cache_with_checksums_still_opens(log):
    """Earlier versions stored them, under the same key."""
    facts = build(Gray(log)).path.with_name("cache.json")
    assert facts.parent.name == "gray-8px-45f931422ac2b739"  # changes with FORMAT and VERSION
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "checksums": ["0" * 32]}))
    assert values(build(Gray(log, stop_at=0))) == list(range(10))


def test_a_cache_of_center_squares_is_not_used_and_named(log, monkeypatch, capsys):
    with monkeypatch.context() as earlier:
        earlier.setattr("hf_essl.data.disk_cache._folder.__defaults__", (1,))
        old = build(Gray(log)).path
    capsys.readouterr()
    new = build(Gray(log)).path
    lines = capsys.readouterr().err.splitlines()
    assert new != old and old.is_file()  # the user's to delete
    assert f"the disk cache {old.parent} contains center squares of an earlier version; it is rebuilt" in lines[0]
    assert "whole image" in json.loads(new.with_name("cache.json").read_text())["canvas"]
    build(Gray(log))
    assert capsys.readouterr().err == ""


def test_other_images_have_another_cache(unlabeled, tmp_path):
    assert values(load(unlabeled, tmp_path)) == list(range(10))
    assert values(load(unlabeled, tmp_path, max_train_samples=3)) == [0, 1, 2]
    write_image(unlabeled / "4.png", 200)
    os.utime(unlabeled / "4.png", (1, 1))  # independent of the clock's resolution
    assert values(load(unlabeled, tmp_path)) == [0, 1, 2, 3, 200, 5, 6, 7, 8, 9]
    assert load(unlabeled, tmp_path, image_size=8)[0]["image"].shape == (3, 8, 8)
    assert len(folders(tmp_path)) == 4


def test_an_interrupted_build_continues(log, interrupted, capsys):
    assert values(build(Gray(log))) == list(range(10))
    assert reads(log) == [8, 9]
    assert "10 images at 8 px, 8 of them already cached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "again"), [("line", range(4, 10)), ("images", range(10)), ("content", range(10)), ("gone", range(10))]
)
def test_a_build_does_not_continue_from_damaged_files(log, interrupted, damage, again):
    journal, images = interrupted / "journal.jsonl", interrupted / "images.u8"
    if damage == "line":
        journal.write_text(journal.read_text()[:-20])
    elif damage == "images":
        os.truncate(images, 5 * 3 * 8 * 8)
    elif damage == "content":
        images.write_bytes(bytes(images.stat().st_size))
    else:
        images.unlink()
    assert values(build(Gray(log))) == list(range(10))
    assert reads(log) == list(again)


def test_unreadable_images_are_named_at_every_opening(damaged, tmp_path, caplog):
    for _ in range(2):
        caplog.clear()
        assert load(damaged, tmp_path, max_unreadable=0.2).left_out == 3
        named = [record.getMessage() for record in caplog.records if "unreadable image" in record.getMessage()]
        assert all(name in line for name, line in zip(("03.png", "09.png", "19.png"), named, strict=True))
    with pytest.raises(ValueError, match=r"3 of 20 images are unreadable .*max_unreadable 0.1"):
        load(damaged, tmp_path, max_unreadable=0.1)


def test_too_many_unreadable_images_stop_a_build_that_continues_later(damaged, tmp_path, small_chunks):
    with pytest.raises(ValueError, match=r"2 of 20 images are unreadable .*max_unreadable 0.05"):
        load(damaged, tmp_path, max_unreadable=0.05)
    images = load(damaged, tmp_path, max_unreadable=0.2)
    assert values(images) == [value for value in range(20) if value not in (3, 9, 19)]


def test_a_damaged_cache_is_rebuilt(log, caplog):
    images = build(Gray(log))
    os.truncate(images.path, 100)
    assert values(build(Gray(log))) == list(range(10))
    assert "is damaged and will be rebuilt" in caplog.text
    images.path.with_name("cache.json").write_text("{")
    assert values(build(Gray(log))) == list(range(10))
    assert len(reads(log)) == 30


def test_a_torch_dataset_needs_a_fingerprint(tmp_path):
    class Squares(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return torch.full((3, 8, 8), index, dtype=torch.uint8), 7

    args, squares = DataArguments(image_size=8, cache="disk", cache_dir=str(tmp_path)), Squares()
    with pytest.raises(ValueError, match=r"Squares has no fingerprint; give the dataset an attribute"):
        as_images(squares, args)
    squares.fingerprint = "squares-1"
    images = as_images(squares, args)
    assert values(images) == [0, 1, 2] and images.labels.tolist() == [7, 7, 7]


def test_too_little_space_is_reported_before_decoding(log, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match=r"10 images at image_size 8 need 0\.0 GB.*set cache_dir to a larger disk"):
        build(Gray(log))
    assert reads(log) == []


def in_processes(sources):
    """Starts a process for each source that builds its cache and writes the values that it reads."""
    context = multiprocessing.get_context("fork")

    def work(number, source):
        source.log.with_name(f"values-{number}").write_text(json.dumps(values(build(source))))

    started = [context.Process(target=work, args=pair) for pair in enumerate(sources)]
    for process in started:
        process.start()
    return started


def test_one_process_builds_and_the_others_wait(log, small_chunks, capfd):
    started = in_processes([Gray(log, seconds=0.05)] * 3)
    for process in started:
        process.join(30)
    assert [process.exitcode for process in started] == [0, 0, 0]
    assert reads(log) == list(range(10))
    assert [json.loads(log.with_name(f"values-{i}").read_text()) for i in range(3)] == [list(range(10))] * 3
    lines = capfd.readouterr().err
    assert lines.count("caching gray on disk: 10 images") == 1
    assert lines.count("waiting for another process, which builds") == 2


def test_a_builder_that_is_killed_is_replaced(log, small_chunks):
    (builder,) = in_processes([Gray(log, seconds=0.1)])
    deadline = time.monotonic() + 20
    while not list(log.parent.glob("hf_essl/*.building/journal.jsonl")) or len(reads(log)) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(builder.pid, signal.SIGKILL)
    builder.join(10)
    log.unlink()
    assert values(build(Gray(log))) == list(range(10))
    assert 0 not in reads(log)


def test_forked_and_spawned_workers_read_it(log):
    images = build(Gray(log))
    values(images)  # the file is open
    loader = DataLoader(images, 5, num_workers=2, collate_fn=collate)
    assert [batch["image"][:, 0, 0, 0].tolist() for batch in loader] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert values(pickle.loads(pickle.dumps(images))) == list(range(10))


def test_reading_a_large_cache_needs_little_memory(tmp_path):
    """A sparse file of 600 MB, read at random; a memory map of it, whose pages count, shows what is measured."""
    size, count = 64, 50_000
    path = tmp_path / "images.u8"
    with path.open("wb") as file:
        file.truncate(count * 3 * size * size)
    images = DiskImages(path, size, np.arange(count), torch.ones(count), None, None, "sparse")
    mapped = np.memmap(path, dtype=np.uint8, mode="r").reshape(count, 3, size, size)
    order = np.random.default_rng(0).permutation(count).reshape(-1, 250)

    def grown(read):
        before = psutil.Process().memory_info().rss
        for batch in order:
            read(batch)
        return (psutil.Process().memory_info().rss - before) / 1e6

    assert grown(images.__getitems__) < 50
    assert grown(mapped.__getitem__) > 500


def test_a_file_that_is_truncated_while_it_is_read(log):
    images = build(Gray(log))
    os.truncate(images.path, 5 * 3 * 8 * 8)
    with pytest.raises(OSError, match="ends before image 5; the next run rebuilds it"):
        values(images)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "", "3", '"x"', "null", '{"unreadable": 3}', '{"unreadable": [{"index": 99}]}', "\0"]
)
def test_any_content_of_its_json_is_one_line(log, text, caplog):
    build(Gray(log)).path.with_name("cache.json").write_text(text)
    assert values(build(Gray(log))) == list(range(10))
    assert [record.getMessage().endswith("is damaged and will be rebuilt") for record in caplog.records] == [True]


@pytest.mark.parametrize("name", ["aspects.npy", "hashes.npy"])
@pytest.mark.parametrize("damage", [lambda old: b"", lambda old: old[:-3], lambda old: old[:-1] + b"\1", None])
def test_its_arrays_are_checked(log, name, damage, caplog):
    path = build(Gray(log)).path.with_name(name)
    path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
    assert values(build(Gray(log))) == list(range(10))
    assert "is damaged and will be rebuilt" in caplog.text


def test_a_damaged_image_is_decoded_again_at_its_first_use(log, capfd):
    path = build(Gray(log)).path
    whole = path.read_bytes()
    content = bytearray(whole)
    for slot in (2, 3, 5, 8):
        content[slot * 192 + 50] ^= 4
    path.write_bytes(content)
    log.unlink()
    capfd.readouterr()
    images = build(Gray(log))
    assert reads(log) == [] and capfd.readouterr().err == "", "opening reads no image"
    assert images[0]["image"].unique().tolist() == [0] and reads(log) == []
    for _ in range(2):
        assert images.__getitems__(range(10))["image"].numpy().tobytes() == whole
        assert reads(log) == [2, 3, 5, 8], "once"
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3 and "image 2 of the disk cache" in lines[0] and "without a line" in lines[2]
    assert path.read_bytes() == whole


def test_a_damaged_image_whose_source_is_gone_stops_the_run(log):
    path = build(Gray(log)).path
    path.write_bytes(bytes(192) + bytes(192) + path.read_bytes()[384:])

    class Gone(Gray):
        def read(self, index):
            raise OSError("no such file")

    with pytest.raises(OSError, match=r"image 1 of the disk cache is damaged, and cannot be decoded again: gray\[1\]"):
        values(build(Gone(log)))


def test_a_cache_without_hashes_still_opens(log):
    facts = build(Gray(log)).path.with_name("cache.json")
    content = json.loads(facts.read_text())
    facts.write_text(json.dumps({key: content[key] for key in content if key not in ("hashes.npy", "aspects.npy")}))
    facts.with_name("hashes.npy").unlink()
    assert values(build(Gray(log, stop_at=0))) == list(range(10))
