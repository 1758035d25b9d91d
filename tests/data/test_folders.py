"""Image folders as people have them. The oracle lists them by brute force, with `os.walk` and the rule in words."""

import json
import logging
import os
import shutil

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_essl.config import DataArguments
from hf_essl.data import NO_LABEL, DiskImages, load_images
from tests.data.images import png, write_image, write_parquet


def load(path, **options):
    return load_images(DataArguments(dataset=str(path), image_size=16, **options))


def plant(root, *names):
    for value, name in enumerate(names):
        write_image(root / name, value)


def pairs(dataset, root):
    """The label, by name, of each image, by its path below `root`."""
    rows = dataset.source.rows
    paths = [os.path.relpath(rows[index]["image"]["path"], root) for index in range(len(rows))]
    labels = [NO_LABEL] * len(rows) if dataset.labels is None else dataset.labels.tolist()
    return {path: None if one == NO_LABEL else dataset.classes[one] for path, one in zip(paths, labels, strict=True)}


@pytest.fixture
def lines(caplog):
    """A function: the lines logged about a dataset that contain a text."""
    caplog.set_level(logging.WARNING, "hf_essl.data")
    return lambda text="": [one for one in caplog.messages if text in one]


class TestClasses:
    def test_names_that_loaders_like_to_skip(self, tmp_path, lines):
        plant(tmp_path, "__background__/a.png", "_x/a.png", "cat & dog/a.png", "Ölçü/a.png", "train/a.png", "1/a.png")
        found = pairs(load(tmp_path).train, tmp_path)
        assert found == {path: path.split("/")[0] for path in found} and len(found) == 6
        assert lines() == []

    @pytest.mark.parametrize("below", ["", "day1/", "a/b/c/", "train/", "cat/"])
    def test_images_at_any_depth_have_the_class_of_the_first_level(self, tmp_path, lines, below):
        plant(tmp_path, *(f"{name}/{below}{i}.png" for name in ("cat", "dog") for i in range(3)), "dog/x.png")
        found = pairs(load(tmp_path).train, tmp_path)
        assert found == {path: path[:3] for path in found} and len(found) == 7
        nested = lines("6 images in folders below a class folder, which belong to that class")
        assert len(nested) == len(lines()) == bool(below)

    @pytest.mark.parametrize("outer, inner", [("site", "cat"), ("cat", "site")])
    def test_site_and_class_in_either_order(self, tmp_path, lines, outer, inner):
        plant(tmp_path, *(f"{outer}{a}/{inner}{b}/{i}.png" for a in range(2) for b in range(3) for i in range(2)))
        assert load(tmp_path).train.classes == [f"{outer}0", f"{outer}1"]
        assert len(lines("12 images in folders below a class folder")) == 1
        assert f"first {outer}0/{inner}0/0.png" in lines()[0]

    def test_a_picture_without_a_class_trains_without_a_label(self, tmp_path, lines):
        plant(tmp_path, "cat/a.png", "cover.png", "dog/a.png", "zebra.png")
        images = load(tmp_path)
        expected = {"cat/a.png": "cat", "dog/a.png": "dog", "cover.png": None, "zebra.png": None}
        assert pairs(images.train, tmp_path) == expected and images.bank is images.train
        assert lines() == [
            f"{tmp_path.name}: 2 images without a label, not used for accuracies, first {tmp_path / 'cover.png'}"
        ]

    def test_a_single_class_says_nothing_about_features(self, tmp_path, lines):
        plant(tmp_path, "scans/a.png", "scans/b.png")
        images = load(tmp_path)
        assert len(images.train) == 2 and images.train.labels is None and images.bank is None
        assert lines("labels are not used: all training images are of one class, scans")

    def test_images_at_the_root_only_and_a_single_image(self, tmp_path, lines):
        plant(tmp_path, "a.png")
        assert pairs(load(tmp_path).train, tmp_path) == {"a.png": None}
        assert lines() == []


class TestSplits:
    @pytest.mark.parametrize("train", ["train", "Train", "TRAIN", "training", "Training"])
    @pytest.mark.parametrize(
        "test",
        ["validation", "valid", "val", "Val", "dev", "eval", "test", "TEST", "testing", "Testing", "Evaluation"],
    )
    def test_common_names_in_any_case(self, tmp_path, lines, train, test):
        plant(tmp_path, f"{train}/cat/0.png", f"{train}/dog/1.png", f"{test}/cat/2.png", f"{test}/dog/3.png")
        images = load(tmp_path)
        assert pairs(images.train, tmp_path) == {f"{train}/cat/0.png": "cat", f"{train}/dog/1.png": "dog"}
        assert pairs(images.eval, tmp_path) == {f"{test}/cat/2.png": "cat", f"{test}/dog/3.png": "dog"}
        assert lines() == []

    def test_an_evaluation_split_of_any_name(self, tmp_path, lines):
        plant(tmp_path, *(f"{split}/{name}/a.png" for split in ("train", "Field 2") for name in ("cat", "dog")))
        images = load(tmp_path, eval_split="Field 2")
        assert pairs(images.train, tmp_path) == {"train/cat/a.png": "cat", "train/dog/a.png": "dog"}
        assert pairs(images.eval, tmp_path) == {"Field 2/cat/a.png": "cat", "Field 2/dog/a.png": "dog"}

    def test_validation_comes_before_test_and_the_rest_is_named(self, tmp_path, lines):
        plant(tmp_path, *(f"{split}/{name}/a.png" for split in ("Train", "Val", "Test", "extra") for name in "ab"))
        plant(tmp_path, "cover.png")
        assert set(pairs(load(tmp_path).eval, tmp_path)) == {"Val/a/a.png", "Val/b/a.png"}
        assert lines("2 images left out because Test is neither the training nor the evaluation split")
        assert lines("2 images left out because extra is neither the training nor the evaluation split")
        assert lines("1 image left out beside the splits Test, Train, Val, extra, first cover.png")
        assert set(pairs(load(tmp_path, eval_split="test", train_split="EXTRA").train, tmp_path)) == {
            "extra/a/a.png", "extra/b/a.png",
        }  # fmt: skip

    def test_only_evaluation_splits_do_not_become_classes(self, tmp_path):
        plant(tmp_path, "val/cat/a.png", "test/cat/a.png")
        with pytest.raises(ValueError, match=r"train_split is train; the splits of .* are test, val"):
            load(tmp_path)
        assert len(load(tmp_path, train_split="val").train) == 1

    def test_an_unlabeled_test_heap(self, tmp_path, lines):
        plant(tmp_path, *(f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(4)))
        plant(tmp_path, *(f"test/{i}.png" for i in range(3)))
        images = load(tmp_path)
        assert images.train.classes == ["cat", "dog"] and len(images.train) == 8 and images.eval is None
        assert len(lines("3 images of the split test are not used because they have no labels")) == len(lines()) == 1
        images = load(tmp_path, eval_holdout=0.25)
        assert (len(images.train), len(images.eval)) == (6, 2) and sorted(images.eval.labels.tolist()) == [0, 1]
        images = load(tmp_path, eval_split="test")
        assert len(images.eval) == 3 and images.eval.labels is None

    def test_a_hold_out_of_unlabeled_images_is_not_lost(self, tmp_path):
        plant(tmp_path, *(f"{i}.png" for i in range(10)))
        images = load(tmp_path, eval_holdout=0.2)
        assert (len(images.train), len(images.eval)) == (8, 2) and images.eval.labels is None

    def test_classes_that_only_one_split_has(self, tmp_path, lines):
        plant(tmp_path, "train/cat/a.png", "train/dog/a.png", "val/cat/a.png", "val/emu/a.png")
        images = load(tmp_path)
        assert images.train.classes == images.eval.classes == ["cat", "dog", "emu"]
        assert lines("1 image of the split val without a training image of the class, first")
        shutil.rmtree(tmp_path / "val/cat")
        assert load(tmp_path).eval is None
        assert lines("labels of the split val are not used: no training image is of its classes")
        assert load(tmp_path).train.classes == ["cat", "dog", "emu"]


class TestFiles:
    @pytest.mark.parametrize(
        "suffix", [".png", ".PNG", ".Jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".TIFF", ".gif", ".webp", ".avif", ".ppm",
                   ".pgm", ".tga", ".ico", ".jp2", ".j2k", ".qoi", ".dds", ".pcx", ".sgi", ".icns", ".apng"]
    )  # fmt: skip
    def test_every_format_that_pillow_opens(self, tmp_path, lines, suffix):
        Image.init()
        kind = Image.registered_extensions()[suffix.lower()]
        if kind not in Image.SAVE:
            pytest.skip(f"this Pillow cannot write {kind}")
        plant(tmp_path, "cat/a.png", "dog/a.png")
        mode = "L" if suffix == ".pgm" else "RGB"
        Image.new(mode, (32, 32), "white").save(tmp_path / "cat" / f"b{suffix}", kind)
        found = load(tmp_path).train
        assert pairs(found, tmp_path)[f"cat/b{suffix}"] == "cat" and lines() == []
        assert found[1]["unreadable"] == [] and found[1]["image"].float().mean() > 250

    def test_others_are_counted_by_kind(self, tmp_path, lines):
        plant(
            tmp_path,
            "cat/a.png",
            "dog/a.png",
            "__MACOSX/cat/._a.png",
            "cat/.thumbs/a.png",
            "cat/.a.png",
            "@eaDir/x.png",
        )
        for name in ("Thumbs.db", "cat/.DS_Store", "notes.txt", "cat/b.heic", "clip.mpg", "scan.h5", "no_extension",
                     "more.zip", "cat/x.tar.gz"):  # fmt: skip
            (tmp_path / name).write_bytes(png(0))
        assert sorted(pairs(load(tmp_path).train, tmp_path)) == ["cat/a.png", "dog/a.png"]
        name = tmp_path.name
        assert sorted(lines()) == [
            f"{name}: 2 archives left out; unpack to use the images, first cat/x.tar.gz",
            f"{name}: 5 files left out because Pillow opens no such images (.h5, .heic, .mpg, .txt, no extension), "
            f"first cat/b.heic",
            f"{name}: 6 files left out because a name is hidden or of the system, first @eaDir/x.png",
        ]

    def test_an_empty_file_and_a_torn_one_are_unreadable_by_name(self, tmp_path):
        plant(tmp_path, *(f"{i}.png" for i in range(8)))
        (tmp_path / "0.png").write_bytes(b"")
        (tmp_path / "1.png").write_bytes(png(0)[:40])
        sample = load(tmp_path).train[0]
        assert [os.path.basename(one.name) for one in sample["unreadable"]] == ["0.png", "1.png"]

    def test_archives_only(self, tmp_path, lines):
        (tmp_path / "a.zip").write_bytes(b"PK")
        with pytest.raises(ValueError, match="contains neither images nor parquet files"):
            load(tmp_path)
        assert lines("1 archive left out; unpack to use the images, first a.zip")

    @pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX only")
    def test_a_pipe_and_a_name_that_is_not_utf8(self, tmp_path, lines):
        plant(tmp_path, "a.png")
        os.mkfifo(tmp_path / "pipe.png")
        with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
            file.write(png(0))
        assert list(pairs(load(tmp_path).train, tmp_path)) == ["a.png"]
        assert lines("1 file left out because of a broken link or because it is no regular file, first pipe.png")
        assert lines("1 file left out because the name is not UTF-8; rename to use them, first caf?.png")


class TestLinks:
    def test_links_to_folders_and_files(self, tmp_path, lines):
        plant(tmp_path / "store", "birds/a.png", "birds/b.png", "dogs/a.png")
        root = tmp_path / "set"
        plant(root, "cat/a.png")
        os.symlink(tmp_path / "store/birds", root / "bird")
        os.symlink("../../store/dogs/a.png", root / "cat/b.png")
        expected = {"bird/a.png": "bird", "bird/b.png": "bird", "cat/a.png": "cat", "cat/b.png": "cat"}
        assert pairs(load(root).train, root) == expected and lines() == []
        os.symlink(tmp_path / "store", tmp_path / "link")
        assert load(tmp_path / "link").train.classes == ["birds", "dogs"]

    @pytest.mark.parametrize("target", ["..", ".", "../..", "../dog"])
    def test_a_loop_is_refused(self, tmp_path, target):
        plant(tmp_path, "set/cat/a.png", "set/dog/a.png")
        os.symlink("../cat", tmp_path / "set/dog/cat")
        os.symlink(target, tmp_path / "set/cat/more", target_is_directory=True)
        with pytest.raises(
            ValueError, match=r"folder .*more.* is a link to a folder above it; remove the link"
        ) as error:
            load(tmp_path / "set")
        assert "\n" not in str(error.value)

    def test_a_broken_link_is_left_out(self, tmp_path, lines):
        plant(tmp_path, "a.png")
        os.symlink(tmp_path / "none.png", tmp_path / "b.png")
        assert len(load(tmp_path).train) == 1
        assert lines("1 file left out because of a broken link or because it is no regular file, first b.png")

    def test_a_link_to_itself_and_a_name_of_two_lines(self, tmp_path, lines):
        plant(tmp_path, "a.png", "b\nc.png")
        os.symlink("self.png", tmp_path / "self.png")
        (tmp_path / "d\ne.txt").write_text("")
        assert len(load(tmp_path).train) == 2
        assert lines("1 file left out because of a broken link or because it is no regular file, first self.png")
        assert lines("first d e.txt") and not any("\n" in line for line in lines())

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can list every folder")
    def test_a_folder_without_permission(self, tmp_path):
        plant(tmp_path, "cat/a.png", "dog/a.png")
        (tmp_path / "dog").chmod(0)
        try:
            with pytest.raises(
                ValueError, match=r"folder .*dog cannot be listed \(Permission denied\); make it readable"
            ):
                load(tmp_path)
        finally:
            (tmp_path / "dog").chmod(0o755)

    def test_a_folder_that_cannot_be_listed(self, tmp_path, monkeypatch):
        plant(tmp_path, "cat/a.png", "dog/a.png")
        scandir = os.scandir

        def refuse(path):
            if str(path).endswith("dog"):
                raise PermissionError(13, "Permission denied")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(ValueError, match=r"folder .*dog cannot be listed \(Permission denied\); make it readable"):
            load(tmp_path)


class TestMetadata:
    FILES = ("cat/0.png", "cat/1.png", "dog/2.png", "dog/3.png")

    def write(self, path, rows):
        if path.suffix == ".jsonl":
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        else:
            table = datasets.Dataset.from_list(rows)
            table.to_csv(path) if path.suffix == ".csv" else table.to_parquet(path)

    @pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
    @pytest.mark.parametrize("column", ["label", "species"])
    @pytest.mark.parametrize("kinds", ["ab", [7, 9]])
    def test_labels_of_the_file_come_before_those_of_the_folders(self, tmp_path, lines, suffix, column, kinds):
        plant(tmp_path, *self.FILES)
        rows = [{"file_name": name, column: kinds[i % 2], "text": "x"} for i, name in enumerate(self.FILES)]
        self.write(tmp_path / f"metadata{suffix}", rows)
        train = load(tmp_path, label_column=column).train
        assert train.labels.tolist() == [0, 1, 0, 1] if kinds == "ab" else [7, 9, 7, 9]
        assert train.classes == (["a", "b"] if kinds == "ab" else None)
        assert lines() == []

    @pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
    @pytest.mark.parametrize("columns", [("file_name", "text"), ("scan", "operator"), ("label", "name")])
    def test_other_columns_leave_the_folders_in_charge(self, tmp_path, lines, suffix, columns):
        plant(tmp_path, *self.FILES)
        self.write(tmp_path / f"metadata{suffix}", [dict.fromkeys(columns, "cat/0.png")])
        assert load(tmp_path).train.classes == ["cat", "dog"]
        (line,) = lines()
        assert f"metadata{suffix} is not used because it has no column" in line
        assert f"its columns are {', '.join(columns)}" in line

    def test_partial_missing_ambiguous_and_relative_rows(self, tmp_path, lines):
        plant(tmp_path, "train/a.png", "train/b.png", "train/c.png", "train/d/e.png", "val/f.png")
        rows = [
            ("a.png", "x"),
            ("./b.png", "y"),
            ("b.png", "x"),
            ("d/e.png", "y"),
            ("../val/f.png", "x"),
            ("no.png", "x"),
        ]
        self.write(tmp_path / "train/metadata.csv", [{"file_name": name, "label": label} for name, label in rows])
        images = load(tmp_path)
        expected = {"train/a.png": "x", "train/b.png": None, "train/c.png": None, "train/d/e.png": "y"}
        assert pairs(images.train, tmp_path) == expected
        assert pairs(images.eval, tmp_path) == {"val/f.png": "x"}
        assert lines(
            "1 row left out of the metadata because the image does not exist, first no.png of train/metadata.csv"
        )
        assert lines("1 image without a label because the metadata has two different ones, first train/b.png")
        assert lines("2 images without a label, not used for accuracies, first")

    @pytest.mark.parametrize("suffix, content", [(".csv", b""), (".jsonl", b"[{]"), (".parquet", b"none")])
    def test_a_damaged_file_is_named(self, tmp_path, lines, suffix, content):
        plant(tmp_path, *self.FILES)
        (tmp_path / f"metadata{suffix}").write_bytes(content)
        assert load(tmp_path).train.classes == ["cat", "dog"]
        assert lines(f"metadata{suffix} is not used because it cannot be read: ")

    @pytest.mark.parametrize("blank", ["", "  "])
    def test_a_blank_label_is_none(self, tmp_path, lines, blank):
        plant(tmp_path, *self.FILES)
        rows = [f"{name},{label}" for name, label in zip(self.FILES, ("x", blank, "y", "x"), strict=True)]
        (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
        train = load(tmp_path).train
        assert train.classes == ["x", "y"] and train.labels.tolist() == [0, NO_LABEL, 1, 0]

    @pytest.mark.parametrize("columns", ["file_name,label,label", "file_name,file_name,label"])
    def test_a_column_of_one_name_twice_is_told(self, tmp_path, lines, columns):
        plant(tmp_path, *self.FILES)
        (tmp_path / "metadata.csv").write_text(f"{columns}\ncat/0.png,x,x\n")
        assert load(tmp_path).train.classes == ["cat", "dog"]
        assert lines("metadata.csv is not used because it has 2 columns ")


def test_only_the_main_process_logs(tmp_path, lines, monkeypatch):
    plant(tmp_path, "cat/a.png", "dog/a.png", "cover.png", ".b.png")
    for rank, count in (("1", 0), ("0", 2)):
        monkeypatch.setenv("RANK", rank)
        load(tmp_path)
        assert len(lines()) == count


class TestTables:
    def test_files_without_a_split_in_the_name(self, tmp_path, lines):
        write_parquet(tmp_path / "site_main.parquet", [0, 1, 2], ["a", "b", "a"])
        write_parquet(tmp_path / "site_test.parquet", [3, 4], ["a", "b"])
        images = load(tmp_path)
        assert (len(images.train), len(images.eval)) == (3, 2)
        assert lines(
            "1 parquet file in the training split because the name has no other split, first site_main.parquet"
        )

    def test_files_of_no_split_are_named(self, tmp_path, lines):
        for name in ("site_train", "site_test", "site_more"):
            write_parquet(tmp_path / f"{name}.parquet", [0, 1, 2], ["a", "b", "a"])
        images = load(tmp_path)
        assert (len(images.train), len(images.eval)) == (3, 3)
        assert lines("1 parquet file left out because the name has none of the splits")
        assert "first site_more.parquet" in lines()[0]

    def test_images_beside_tables(self, tmp_path, lines):
        plant(tmp_path / "one", "a.png", "b.png")
        datasets.Dataset.from_dict({"embedding": [[0.0]]}).to_parquet(tmp_path / "one/features.parquet")
        assert len(load(tmp_path / "one").train) == 2
        assert lines("1 parquet file left out because it has no column image, first features.parquet")
        plant(tmp_path / "two", "assets/logo.png")
        write_parquet(tmp_path / "two/train.parquet", [0, 1, 2])
        assert len(load(tmp_path / "two").train) == 3
        assert lines("1 image file left out beside the parquet files, first assets/logo.png")

    @pytest.mark.parametrize("name", ["a[1]", "a*", "what?", "a::b"])
    def test_a_name_that_datasets_takes_for_a_pattern_is_one_line(self, tmp_path, name):
        (tmp_path / name).mkdir()
        write_parquet(tmp_path / name / "train.parquet", [0, 1, 2])
        with pytest.raises(ValueError, match=r"no parquet files below a name with .*, rename it$"):
            load(tmp_path / name)
        if name == "a::b":
            with pytest.raises(ValueError, match=r"reads no file below a name with ::, rename it$"):
                load(tmp_path / name / "train.parquet")
        else:
            assert len(load(tmp_path / name / "train.parquet").train) == 3

    def test_a_table_without_rows_is_one_line(self, tmp_path):
        write_parquet(tmp_path / "train.parquet", [])
        with pytest.raises(ValueError, match=r"dataset train cannot be read: a parquet file has no rows; remove it$"):
            load(tmp_path / "train.parquet")

    def test_a_file_of_some_state_does_not_make_a_saved_dataset(self, tmp_path):
        plant(tmp_path, "cat/a.png", "dog/b.png")
        (tmp_path / "state.json").write_text("{}")
        assert load(tmp_path).train.classes == ["cat", "dog"]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_dataset_saved_by_datasets(self, tmp_path, streaming):
        def rows(*values):
            labels = [value % 2 for value in values]
            return datasets.Dataset.from_dict({"image": [Image.new("L", (9, 9), v) for v in values], "label": labels})

        datasets.DatasetDict(train=rows(1, 2, 3), test=rows(4, 5)).save_to_disk(tmp_path / "both")
        images = load(tmp_path / "both", streaming=streaming)
        assert len(images.bank) == 3 and len(images.eval) == 2 and images.eval.labels.tolist() == [0, 1]
        rows(1, 2, 3).save_to_disk(tmp_path / "one")
        assert len(load(tmp_path / "one", streaming=streaming).bank) == 3


def test_a_disk_cache_follows_the_files(tmp_path):
    """The cache is used again for the same files, and rebuilt for a changed, an added and a removed one."""
    root, caches = tmp_path / "set", tmp_path / "caches"
    plant(root, *(f"{i}.png" for i in range(4)))

    def cached():
        images = load(root, cache="disk", cache_dir=str(caches)).train
        assert isinstance(images, DiskImages)
        return images.path, images.gather(images[0]["image"].new_tensor(range(len(images))).long())[
            :, 0, 0, 0
        ].tolist()

    first = cached()
    assert cached() == first and first[1] == [0, 1, 2, 3]
    write_image(root / "3.png", 9)
    os.utime(root / "3.png", ns=(1, 1))
    assert cached()[1] == [0, 1, 2, 9]
    write_image(root / "4.png", 7)
    assert cached()[1] == [0, 1, 2, 9, 7]
    (root / "0.png").unlink()
    assert cached()[1] == [1, 2, 9, 7]
    assert len([path for path in (caches / "hf_essl").iterdir() if path.is_dir()]) == 4


FOLDERS = ("cat", "dog", "day 1", "[x]", "__b__", ".git", "__MACOSX", "puppies", "lost+found")
NAMES = ("a.png", "b.JPG", "c.webp", ".d.png", "e.txt", "f", "Thumbs.db", "g.tar.gz", "h.avif", "i.pdf", "j.mpeg")
IMAGES, SYSTEM = (".png", ".jpg", ".webp", ".avif"), ("__MACOSX", "Thumbs.db", "lost+found")
PATHS = st.lists(st.sampled_from(FOLDERS), max_size=3).flatmap(
    lambda parts: st.sampled_from(NAMES).map(lambda name: "/".join([*parts, name]))
)


def brute_force(root):
    """Each image that should train with its class, and the number of all other files."""
    trained, others = {}, 0
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.relpath(os.path.join(folder, name), root)
            parts = path.split(os.sep)
            hidden = any(part.startswith(".") or part in SYSTEM for part in parts)
            if hidden or not name.lower().endswith(IMAGES):
                others += 1
            else:
                trained[path] = parts[0] if len(parts) > 1 else None
    return trained, others


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.sets(PATHS, min_size=1, max_size=12))
def test_any_tree_agrees_with_brute_force(tmp_path, caplog, paths):
    root = tmp_path / "tree"
    shutil.rmtree(root, ignore_errors=True)
    caplog.clear()
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(png(0))
    trained, others = brute_force(root)
    if not trained:
        with pytest.raises(ValueError, match="contains neither images nor parquet files"):
            load(root)
        return
    found = pairs(load(root).train, root)
    classes = {name for name in trained.values() if name is not None}
    assert found == (trained if len(classes) > 1 else dict.fromkeys(trained))
    counted = [line.split(": ", 1)[1].split()[0] for line in caplog.messages if " left out" in line]
    assert sum(map(int, counted)) == others
