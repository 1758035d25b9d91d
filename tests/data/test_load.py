import os
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hf_essl.config import DataArguments
from hf_essl.data import NO_LABEL, CachedImages, Images, as_images, collate, count_training_images, load_images
from tests.data.images import write_image, write_parquet


def load(path, **options) -> Images:
    return load_images(DataArguments(dataset=str(path), image_size=16, **options))


def values(dataset):
    return [int(dataset[index]["image"][0, 0, 0]) for index in range(len(dataset))]


def rejected(match, path, **options):
    with pytest.raises(ValueError, match=match) as error:
        load(path, **options)
    assert "\n" not in str(error.value)


class TestFolder:
    def test_images_without_sub_folders_have_no_labels(self, unlabeled):
        images = load(unlabeled)
        assert sorted(values(images.train)) == list(range(10))
        assert images.train.labels is None and images.train.classes is None
        assert images.eval is None and images.bank is None
        assert images.train[0]["label"] == NO_LABEL and images.train[0]["image"].shape == (3, 16, 16)

    def test_classes_are_sub_folders(self, labeled):
        images = load(labeled)
        assert images.train.classes == ["ant", "bee"]
        assert images.bank is images.train and images.eval is None
        assert [int(value >= 10) for value in values(images.train)] == images.train.labels.tolist()
        assert images.train[19]["label"] == images.train.labels[19]

    def test_split_folders_share_the_classes(self, tmp_path):
        for value, where in enumerate(["train/ant", "train/bee", "train/cat", "val/cat", "val/bee", "test/ant"]):
            write_image(tmp_path / where / f"{value}.png", value)
        images = load(tmp_path)
        assert images.train.classes == images.eval.classes == ["ant", "bee", "cat"]
        assert dict(zip(values(images.eval), images.eval.labels.tolist(), strict=True)) == {3: 2, 4: 1}
        assert values(load(tmp_path, eval_split="test").eval) == [5]
        assert sorted(values(load(tmp_path, train_split="val", eval_split="train").train)) == [3, 4]
        rejected("eval_split is vall; the splits of .* are test, train, val", tmp_path, eval_split="vall")
        rejected("train_split is training; the splits of .* are test, train, val", tmp_path, train_split="training")

    def test_split_folders_without_sub_folders_have_no_labels(self, tmp_path):
        for value, where in enumerate(["train", "train", "val"]):
            write_image(tmp_path / where / f"{value}.png", value)
        images = load(tmp_path)
        assert sorted(values(images.train)) == [0, 1]
        assert images.train.labels is None and images.eval is None

    def test_classes_named_as_splits_or_with_odd_names(self, tmp_path):
        for value, where in enumerate(["[a] car", "plane-test", "train"]):
            write_image(tmp_path / "vehicles [1]" / where / f"test_{value}.png", value)
        images = load(tmp_path / "vehicles [1]")
        assert images.train.classes == ["[a] car", "plane-test", "train"]
        assert sorted(values(images.train)) == [0, 1, 2]

    def test_a_folder_in_the_working_directory(self, labeled, monkeypatch):
        monkeypatch.chdir(labeled.parent)
        assert len(load("labeled").train) == len(load("./labeled").train) == 20

    def test_a_deleted_file_is_unreadable(self, unlabeled):
        images = load(unlabeled).train
        os.remove(unlabeled / "0.png")
        unreadable = [one for index in range(10) for one in images[index]["unreadable"]]
        assert [(one.name, one.reason) for one in unreadable] == [(str(unlabeled / "0.png"), "missing file")]

    def test_second_load_sees_a_changed_folder(self, labeled):
        assert len(load(labeled).train) == 20
        shutil.copy(labeled / "ant" / "00.png", labeled / "ant" / "20.png")
        assert len(load(labeled).train) == 21


class TestParquet:
    def test_folder_with_string_labels(self, tmp_path):
        write_parquet(tmp_path / "train-00000-of-00002.parquet", [0, 1], ["bee", "cat"])
        write_parquet(tmp_path / "train-00001-of-00002.parquet", [2, 3], ["ant", "bee"])
        write_parquet(tmp_path / "test-00000-of-00001.parquet", [4, 5], ["cat", "bee"])
        images = load(tmp_path)
        assert images.train.classes == images.eval.classes == ["ant", "bee", "cat"]
        assert (values(images.train), images.train.labels.tolist()) == ([0, 1, 2, 3], [1, 2, 0, 1])
        assert (values(images.eval), images.eval.labels.tolist()) == ([4, 5], [2, 1])

    def test_one_file_with_integer_labels(self, tmp_path):
        write_parquet(tmp_path / "few.parquet", [7, 8, 9], [2, 0, 2])
        images = load(tmp_path / "few.parquet")
        assert (values(images.train), images.train.labels.tolist()) == ([7, 8, 9], [2, 0, 2])
        assert images.train.name == "few" and images.train.classes is None

    def test_unknown_class_in_evaluation(self, tmp_path):
        write_parquet(tmp_path / "train.parquet", [0, 1], ["ant", "bee"])
        write_parquet(tmp_path / "test.parquet", [2], ["emu"])
        rejected("label_column label contains 'emu'; the classes are ant, bee", tmp_path)

    def test_labels_missing_or_of_another_type(self, tmp_path):
        write_parquet(tmp_path / "none.parquet", [0, 1], [-1, -1])
        assert load(tmp_path / "none.parquet").train.labels is None
        write_parquet(tmp_path / "part.parquet", [0, 1, 2], [3, None, 4])
        assert load(tmp_path / "part.parquet").train.labels.tolist() == [3, NO_LABEL, 4]
        write_parquet(tmp_path / "float.parquet", [0, 1], [0.5, 1.5])
        assert load(tmp_path / "float.parquet").bank is None

    def test_columns(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", [0, 1], ["ant", "bee"])
        rejected("image_column is img; the columns of a are image, label", tmp_path / "a.parquet", image_column="img")
        assert load(tmp_path / "a.parquet", label_column="species").bank is None
        pa.parquet.write_table(pa.table({"image": [1, 2]}), tmp_path / "b.parquet")
        rejected("image_column image of b contains .*int64", tmp_path / "b.parquet")

    def test_damaged_parquet_file(self, tmp_path):
        (tmp_path / "a.parquet").write_bytes(b"nothing of the kind")
        rejected("dataset a cannot be read: .*[Pp]arquet", tmp_path / "a.parquet")

    def test_unknown_configuration(self, tmp_path):
        write_parquet(tmp_path / "train.parquet", [0], ["ant"])
        rejected("dataset_config is tiny; the configurations of .* are default", tmp_path, dataset_config="tiny")


class TestSubsets:
    def test_first_and_evenly_spaced(self, tmp_path):
        write_parquet(tmp_path / "train.parquet", range(10), [i % 2 for i in range(10)])
        write_parquet(tmp_path / "test.parquet", range(100, 110), [0] * 10)
        images = load(tmp_path, max_train_samples=4, max_eval_samples=5)
        assert values(images.train) == [0, 1, 2, 3] and images.train.labels.tolist() == [0, 1, 0, 1]
        assert values(images.eval) == [100, 102, 104, 106, 108]
        assert len(load(tmp_path, max_train_samples=99).train) == 10

    def test_hold_out(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", range(20), ["ant"] * 10 + ["bee"] * 10)
        images = load(tmp_path / "a.parquet", eval_holdout=0.2)
        assert len(images.eval) == 4 and sorted(values(images.train) + values(images.eval)) == list(range(20))
        assert images.eval.labels.tolist() == [0, 0, 1, 1]
        assert values(load(tmp_path / "a.parquet", eval_holdout=0.2).eval) == values(images.eval)
        assert load(tmp_path / "a.parquet").eval is None

    def test_hold_out_shares_classes_with_few_training_images(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", range(20), ["bee"] * 10 + ["ant"] * 10)
        images = load(tmp_path / "a.parquet", eval_holdout=0.2, max_train_samples=3)
        assert images.train.classes == images.eval.classes == ["ant", "bee"]
        assert images.train.labels.tolist() == [1, 1, 1] and images.eval.labels.tolist() == [1, 1, 0, 0]

    def test_count_without_a_known_length(self, unlabeled):
        args = {"dataset": str(unlabeled), "image_size": 16}
        assert count_training_images(DataArguments(**args)) == 10
        assert count_training_images(DataArguments(**args, max_train_samples=4, cache="device")) == 4
        with pytest.raises(ValueError, match="is a stream without a length; pass --images N"):
            count_training_images(DataArguments(**args, streaming=True))


class TestRejections:
    @pytest.mark.parametrize("name", ["./none", "/none/such", "~/none such", "none.parquet", "a/b/c", "two words"])
    def test_paths(self, name):
        rejected(f"dataset is {name}, which does not exist; give a folder.* or photo-patches", name)

    def test_empty_folder_and_other_file(self, tmp_path):
        (tmp_path / "notes.txt").write_text("none")
        rejected("contains neither images nor parquet files", tmp_path)
        rejected("dataset is the file .*notes.txt; give a parquet file", tmp_path / "notes.txt")

    @pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
    def test_hub_out_of_reach(self, name):
        rejected(f"dataset {name} is not a local folder, and the Hub cannot be reached .* use photo-patches", name)

    def test_hub_says_not_found(self, monkeypatch):
        def raise_not_found(*_):
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'a/b' doesn't exist\non the Hub")

        monkeypatch.setattr(datasets, "load_dataset_builder", raise_not_found)
        rejected(
            "dataset a/b is neither a local folder nor a dataset on the Hub that you can access; .* HF_TOKEN", "a/b"
        )

    def test_settings(self, unlabeled, labeled):
        rejected("cache is 'ram'; it should be 'none', 'memory', 'disk' or 'device'", unlabeled, cache="ram")
        rejected("max_train_samples is 0", unlabeled, max_train_samples=0)
        rejected("cache is device, but no device was passed", unlabeled, cache="device")
        rejected("dataset_config is big; .* has none", labeled, dataset_config="big")
        rejected("dataset_config is big; photo-patches has none", "photo-patches", dataset_config="big")
        rejected("streaming is true with photo-patches", "photo-patches", streaming=True)


class Pictures(Dataset):
    """Gray PIL images in one of several forms."""

    def __init__(self, form):
        self.form = form

    def __len__(self):
        return 6

    def __getitem__(self, index):
        image = Image.new("L", (20, 20), index)
        return {
            "bare": image,
            "pair": (image, index % 3),
            "dict": {"image": image, "label": index % 3},
            "partly": (image, None if index == 0 else index - 2),  # None and -1 both mean: no label
            "none": {"image": image, "label": -5},
        }[self.form]


class TestPythonAPI:
    args = DataArguments(image_size=16, max_train_samples=2)  # the limits are for recipes

    @pytest.mark.parametrize(
        "form, labels",
        [
            ("bare", None),
            ("none", None),
            ("pair", [0, 1, 2] * 2),
            ("dict", [0, 1, 2] * 2),
            ("partly", [NO_LABEL, NO_LABEL, 0, 1, 2, 3]),
        ],
    )
    @pytest.mark.parametrize("cache", ["none", "memory"])
    def test_torch_dataset(self, form, labels, cache):
        images = as_images(Pictures(form), DataArguments(image_size=16, cache=cache))
        assert values(images) == list(range(6))
        assert (images.labels if labels is None else images.labels.tolist()) == labels
        (batch,) = DataLoader(images, 6, collate_fn=collate)
        assert batch["label"].dtype == torch.int64 and batch["label"].tolist() == (labels or [NO_LABEL] * 6)

    def test_tensors(self):
        pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
        images = as_images(TensorDataset(pixels, torch.arange(5)), self.args)
        assert all(torch.equal(images[index]["image"], pixels[index]) for index in range(5))
        assert images.labels.tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(ValueError, match=r"torch\.float32 tensor"):
            as_images(TensorDataset(torch.rand(5, 3, 16, 16)), self.args)[0]

    def test_labels_are_read_without_needless_images(self):
        class Counted(Pictures):
            reads = 0

            def __getitem__(self, index):
                self.reads += 1
                return super().__getitem__(index)

        with_targets, bare = Counted("pair"), Counted("bare")
        with_targets.targets = (5, 4, 3, 2, 1, 0)
        assert as_images(with_targets, self.args).labels.tolist() == [5, 4, 3, 2, 1, 0]
        assert as_images(bare, self.args).labels is None
        assert (with_targets.reads, bare.reads) == (0, 1)

    def test_hugging_face_dataset(self):
        rows = datasets.Dataset.from_dict(
            {"image": [Image.new("L", (20, 20), v) for v in range(4)], "label": [1, 0, 1, 0]}
        )
        rows = rows.cast_column("label", datasets.ClassLabel(names=["ant", "bee"])).with_format("numpy")
        images = as_images(rows, self.args)
        assert (values(images), images.labels.tolist(), images.classes) == ([0, 1, 2, 3], [1, 0, 1, 0], ["ant", "bee"])

    def test_path_and_decoded_images(self, labeled):
        images = as_images(labeled, self.args)
        assert len(images) == 20
        assert as_images(images, self.args) is images
        assert len(as_images("photo-patches", DataArguments(image_size=8))) == 4096

    def test_cache_and_others(self, unlabeled):
        assert isinstance(as_images(unlabeled, DataArguments(image_size=16, cache="memory")), CachedImages)
        for wrong in (7, datasets.DatasetDict({"train": datasets.Dataset.from_dict({"image": []})})):
            with pytest.raises(ValueError, match=r"the dataset is a .*; pass one split as a datasets.Dataset"):
                as_images(wrong, self.args)


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_workers_change_nothing(labeled, cache):
    images = load(labeled, cache=cache).train
    runs = [list(DataLoader(images, 6, num_workers=workers, collate_fn=collate)) for workers in (0, 2)]
    assert [len(batch["image"]) for batch in runs[0]] == [6, 6, 6, 2]
    assert runs[0][0]["image"].dtype == torch.uint8 and runs[0][0]["label"].dtype == torch.int64
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["label"], other["label"])


@pytest.mark.skipif("HF_ESSL_IMAGENETTE" not in os.environ, reason="HF_ESSL_IMAGENETTE names no Imagenette folder")
def test_imagenette():
    images = load(os.environ["HF_ESSL_IMAGENETTE"])
    assert (len(images.train), len(images.eval)) == (9469, 3925)
    assert images.train.classes == images.eval.classes and len(images.train.classes) == 10
    assert images.train.classes[0] == "tench" and images.train.labels.bincount().min() > 800
    sample = images.train[9468]
    assert sample["image"].shape == (3, 16, 16) and sample["unreadable"] == []
    assert np.isin(images.eval.labels, np.arange(10)).all()


def test_an_evaluation_split_with_its_own_class_names_counts_the_training_classes(tmp_path):
    """Each split was encoded alone, and the test images lack the first class."""
    splits = {}
    for split, labels in {"train": ["ant", "bee", "cat", "ant"], "test": ["bee", "cat", "bee", "cat"]}.items():
        pictures = [Image.new("L", (20, 20), 10 * value) for value in range(4)]
        splits[split] = datasets.Dataset.from_dict({"image": pictures, "label": labels}).class_encode_column("label")
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "set"))
    images = load(tmp_path / "set")
    assert images.train.classes == images.eval.classes == ["ant", "bee", "cat"]
    assert images.eval.labels.tolist() == [1, 2, 1, 2]


def test_a_folder_with_a_script_of_its_own_name_is_one_line(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    write_parquet(folder / "train.parquet", [1, 2, 3, 4], [0, 1, 0, 1])
    (folder / "shards.py").write_text("")
    rejected("Dataset scripts are no longer supported", folder)
