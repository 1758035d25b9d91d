"""Embedding a dataset into a parquet file: rows, features, resumption; and the search in it."""

import io
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torch.nn import functional as F

from hf_essl import cli
from hf_essl.config import DataArguments
from hf_essl.evaluation import embed as module
from hf_essl.evaluation.backbone import load_backbone
from hf_essl.evaluation.embed import embed
from hf_essl.evaluation.search import Embeddings
from tests.helpers import small_trainer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    trainer = small_trainer(folder / "run")
    return str(trainer.export_backbone(folder / "backbone"))


@pytest.fixture
def folder(tmp_path):
    """Twelve images of two classes in a train and a test split."""
    root = tmp_path / "images"
    generator = torch.Generator().manual_seed(0)
    for index in range(12):
        place = root / ("train" if index < 9 else "test") / ("cat" if index % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (40, 30 + index, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(place / f"{index:02d}.png")
    return root


def rows(file):
    return datasets.Dataset.from_parquet(str(file), cache_dir=str(Path(file).parent / "cache")).to_list()


def test_every_image_of_every_split_has_a_row(backbone, folder, tmp_path):
    done = embed(backbone, DataArguments(dataset=str(folder)), tmp_path / "f.parquet")
    found = rows(done.path)
    assert done.rows == len(found) == 12 and done.unreadable == []
    expected = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert {row["path"] for row in found} == expected
    for row in found:
        split, name, _ = row["path"].split("/")
        assert (row["split"], row["class"], row["label"]) == (split, name, ["cat", "dog"].index(name))
        assert len(row["embedding"]) == done.dimensions
    assert not (tmp_path / "f.parquet.parts").exists()


@pytest.mark.parametrize("way", ["../images", "../../{parent}/images", "link", "~/images"])
def test_paths_are_those_below_the_folder_however_it_is_named(way, backbone, folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("link").symlink_to(folder)
    done = embed(backbone, DataArguments(dataset=way.format(parent=tmp_path.name)), tmp_path / "f.parquet")
    expected = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert {row["path"] for row in rows(done.path)} == expected
    found = Embeddings.read(done.path)
    assert found.search([str(folder / "test/dog/10.png")], 1)[0].query == found.paths.index("test/dog/10.png")


def test_features_are_those_of_the_backbone_on_the_original(backbone, folder, tmp_path):
    """Through timm's transform of the PIL image; noise is the worst case for the canvas."""
    done = embed(backbone, DataArguments(dataset=str(folder)), tmp_path / "f.parquet", image_size=256)
    loaded = load_backbone(backbone)
    for row in rows(done.path)[:4]:
        with torch.inference_mode():
            expected = loaded.backbone(loaded.preprocess([folder / row["path"]]))[0]
        assert F.cosine_similarity(torch.tensor(row["embedding"]), expected, dim=0) > 0.99


def test_images_have_the_white_of_the_run_unless_another_is_named(backbone, tmp_path):
    """12 bits in files of 16: 4095 is white, as the 8-bit image next to it shows."""
    random = np.random.default_rng(0)
    gray = random.integers(0, 256, (40, 40))
    for name, pixels in (("deep", (gray * 4095 / 255).round().astype(np.uint16)), ("flat", gray.astype(np.uint8))):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "image.png")
    run = str(shutil.copytree(backbone, tmp_path / "run"))
    run_recipe = Path(run) / "recipe.yaml"
    run_recipe.write_text("white_level: 4095\n")
    data = {name: DataArguments(dataset=str(tmp_path / name)) for name in ("deep", "flat")}
    flat = rows(embed(run, data["flat"], tmp_path / "a.parquet").path)[0]["embedding"]
    deep = rows(embed(run, data["deep"], tmp_path / "b.parquet").path)[0]["embedding"]
    np.testing.assert_allclose(deep, flat, atol=1e-4)
    dark = replace(data["deep"], white_level=65535.0)
    assert not np.allclose(rows(embed(run, dark, tmp_path / "c.parquet").path)[0]["embedding"], flat, atol=1e-2)


@pytest.mark.parametrize(
    ("first", "second", "classes", "labels"),
    [
        (["cat", "dog"], ["ant", "cat"], ["ant", "cat", "dog"], [1, 2, 0, 1]),
        (["7", "10"], [10, 8], ["10", "7", "8"], None),  # text in one split, numbers in the other
        ([4, 2], [2, 9], None, [4, 2, 2, 9]),
        (["cat", None], ["emu", "emu"], ["cat", "emu"], [0, None, 1, 1]),
    ],
)
def test_the_splits_of_a_table_share_their_classes(backbone, tmp_path, first, second, classes, labels):
    image = _png()
    for split, values in (("train", first), ("test", second)):
        table = pa.table({"image": [image] * 2, "label": values})
        parquet.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    embed(backbone, DataArguments(dataset=str(tmp_path)), tmp_path / "out" / "f.parquet")
    rows = parquet.read_table(tmp_path / "out" / "f.parquet").to_pylist()
    rows.sort(key=lambda row: row["split"], reverse=True)
    assert [row["split"] for row in rows] == ["train", "train", "test", "test"]
    if labels is not None:
        assert [row["label"] for row in rows] == labels
    if classes is None:
        assert "class" not in rows[0]
    else:
        assert [row["class"] for row in rows] == [None if one is None else str(one) for one in first + second]
        assert all(row["label"] is None or classes[row["label"]] == row["class"] for row in rows)


def test_folders_with_classes_of_their_own_keep_their_labels(backbone, tmp_path):
    for name in ("train/cat", "train/dog", "test/emu"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.png").write_bytes(_png()["bytes"])
    embed(backbone, DataArguments(dataset=str(tmp_path / "images")), tmp_path / "f.parquet")
    rows = parquet.read_table(tmp_path / "f.parquet").to_pylist()
    assert {(row["path"], row["class"], row["label"]) for row in rows} == {
        ("train/cat/1.png", "cat", 0), ("train/dog/1.png", "dog", 1), ("test/emu/1.png", "emu", 2),
    }  # fmt: skip


def _png() -> dict:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 30, 90)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": "x.png"}


def test_without_labels_there_are_no_such_columns(backbone, tmp_path):
    (tmp_path / "flat").mkdir()
    for index in range(3):
        Image.new("RGB", (20, 20), (index * 80, 0, 0)).save(tmp_path / "flat" / f"{index}.png")
    done = embed(backbone, DataArguments(dataset=str(tmp_path / "flat")), tmp_path / "f.parquet")
    assert set(rows(done.path)[0]) == {"path", "embedding"}


def test_images_of_a_table_have_their_position(backbone, folder, tmp_path):
    images = [{"image": Image.open(path), "label": index % 3} for index, path in enumerate(folder.rglob("*.png"))]
    datasets.Dataset.from_list(images).to_parquet(tmp_path / "images.parquet")
    done = embed(backbone, DataArguments(dataset=str(tmp_path / "images.parquet")), tmp_path / "f.parquet")
    found = rows(done.path)
    assert [row["label"] for row in found] == [index % 3 for index in range(12)] and "class" not in found[0]
    assert [row["path"] for row in found] == [f"train/{index}" for index in range(12)]


def test_unreadable_images_are_named_and_have_no_row(backbone, folder, tmp_path):
    torn = folder / "train" / "cat" / "torn.png"
    torn.write_bytes((folder / "train" / "cat" / "01.png").read_bytes()[:60])
    done = embed(backbone, DataArguments(dataset=str(folder)), tmp_path / "f.parquet")
    assert done.unreadable == ["train/cat/torn.png"] and done.rows == 12
    assert torn.name not in {Path(row["path"]).name for row in rows(done.path)}


@pytest.mark.slow
def test_killed_and_continued_nothing_is_lost_or_doubled(backbone, folder, tmp_path, monkeypatch):
    code = f"""
import os, signal
from hf_essl.config import DataArguments
from hf_essl.evaluation import embed as module
module.PART, write, calls = 2, module._write, []
def killed(path, table):
    if calls and len(calls) == 2:
        path.with_name("." + path.name + ".tmp").write_bytes(b"half of a part")
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(write(path, table))
module._write = killed
module.embed({backbone!r}, DataArguments(dataset={str(folder)!r}), {str(tmp_path / "f.parquet")!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    parts = tmp_path / "f.parquet.parts"
    assert len(list(parts.glob("part-*.parquet"))) == 2 and not (tmp_path / "f.parquet").exists()
    monkeypatch.setattr(module, "PART", 2)
    whole = embed(backbone, DataArguments(dataset=str(folder)), tmp_path / "whole.parquet")
    resumed = embed(
        backbone, DataArguments(dataset=str(folder)), tmp_path / "f.parquet"
    )  # of 12; the parts had 2 and 1
    assert resumed.computed == 9 and rows(resumed.path) == rows(whole.path)
    paths = [row["path"] for row in rows(resumed.path)]
    assert sorted(paths) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


@pytest.mark.parametrize(("patches", "overwrite"), [(False, False), (True, False), (False, True)])
def test_an_interrupted_embedding_continues(backbone, folder, tmp_path, monkeypatch, patches, overwrite):
    for name in ("PART", "PATCH_PART"):
        monkeypatch.setattr(module, name, 2)
    data, output = DataArguments(dataset=str(folder)), tmp_path / "f.parquet"
    embed = partial(module.embed, patches=patches)
    whole = embed(backbone, data, tmp_path / "whole.parquet")
    write, calls = module._write, []

    def stopped(path, table):
        if len(calls) == 2:
            path.with_name(f".{path.name}.tmp").write_bytes(b"half of a part")
            raise KeyboardInterrupt
        calls.append(path)
        write(path, table)

    monkeypatch.setattr(module, "_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        embed(backbone, data, output)
    monkeypatch.setattr(module, "_write", write)
    with pytest.raises(ValueError, match=r"was begun with resolution 32, which is now 24; start over"):
        embed(backbone, data, output, resolution=24)
    finished = sum(parquet.read_metadata(path).num_rows for path in calls)
    done = embed(backbone, data, output, overwrite=overwrite)
    assert done.computed == 12 - finished < 12 and done.rows == 12
    assert rows(output) == rows(whole.path)
    with pytest.raises(ValueError, match="exists; choose another --output, or replace it with --overwrite"):
        embed(backbone, data, output)
    assert embed(backbone, data, output, overwrite=True).computed == 12


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_embedding_into_the_same_file_is_refused(backbone, folder, tmp_path, overwrite):
    output = tmp_path / "f.parquet"
    code = (
        "import pathlib, sys\nfrom hf_essl.run_lock import run_lock\n"
        f"with run_lock(pathlib.Path({str(output) + '.parts'!r}), 'output'):\n"
        "    print('held', flush=True)\n    sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"parts is in use by process {holder.pid} on .*another --output$"):
            embed(backbone, DataArguments(dataset=str(folder)), output, overwrite=overwrite)
    finally:
        holder.communicate()
    assert embed(backbone, DataArguments(dataset=str(folder)), output, overwrite=overwrite).rows == 12
    assert not output.with_name("f.parquet.parts").exists()


def test_unreadable_images_from_before_an_interruption_are_named(backbone, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 2)
    (folder / "test" / "cat" / "00.png").write_bytes(b"no image")
    data, output, join = DataArguments(dataset=str(folder)), tmp_path / "f.parquet", module._join
    monkeypatch.setattr(module, "_join", lambda parts, output: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embed(backbone, data, output)
    monkeypatch.setattr(module, "_join", join)
    done = embed(backbone, data, output)
    assert (done.computed, done.unreadable, done.rows) == (0, ["test/cat/00.png"], 12)


def test_a_part_without_a_readable_image_has_no_row(backbone, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 2)
    torn = [folder / "test" / "cat" / name for name in ("00.png", "01.png")]
    for path in torn:
        path.write_bytes(b"no image")
    done = embed(backbone, DataArguments(dataset=str(folder)), tmp_path / "f.parquet")
    assert (
        sorted(done.unreadable) == ["test/cat/00.png", "test/cat/01.png"] and done.rows == len(rows(done.path)) == 12
    )


def test_changed_labels_are_not_mixed_with_old_parts(backbone, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_join", lambda parts, output: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embed(backbone, DataArguments(dataset=str(folder)), tmp_path / "f.parquet")
    with pytest.raises(ValueError, match="was begun with label_column label, which is now kind"):
        embed(backbone, DataArguments(dataset=str(folder), label_column="kind"), tmp_path / "f.parquet")


def test_changed_images_are_not_mixed_with_old_parts(backbone, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 2)
    data = DataArguments(dataset=str(folder))
    monkeypatch.setattr(module, "_join", lambda parts, output: pytest.fail("stop before the last step"))
    with pytest.raises(pytest.fail.Exception):
        embed(backbone, data, tmp_path / "f.parquet")
    Image.new("RGB", (10, 10)).save(folder / "train" / "cat" / "01.png")
    with pytest.raises(ValueError, match="was begun with files"):
        embed(backbone, data, tmp_path / "f.parquet")


def test_the_commands_write_search_and_draw(backbone, folder, tmp_path, capsys):
    file, picture = str(tmp_path / "f.parquet"), str(tmp_path / "n.png")
    assert cli.main(["embed", backbone, str(folder), "--output", file]) == 0
    assert "12 rows of" in capsys.readouterr().out
    query = "train/dog/00.png"
    words = ["neighbours", file, "--query", query, "--neighbors", "3", "--output", picture]
    assert cli.main(words) == 0
    line = capsys.readouterr().out.splitlines()[2]
    table = rows(file)
    paths, features = [row["path"] for row in table], torch.tensor([row["embedding"] for row in table])
    at = paths.index(query)
    cosines = F.cosine_similarity(features[at][None], features)
    order = [row for row in cosines.argsort(descending=True).tolist() if row != at][:3]
    assert [cell.split(" (")[0].strip() for cell in line.split("|")[2:-1]] == [paths[row] for row in order]
    with Image.open(picture) as drawn:
        assert drawn.width > 300
    folder.rename(tmp_path / "moved")
    assert cli.main(words) == 2
    assert "give the folder that was embedded" in capsys.readouterr().err
    assert cli.main([*words, "--images", str(tmp_path / "moved")]) == 0


def test_the_file_of_an_image_is_a_query_too(backbone, folder, tmp_path):
    found = Embeddings.read(embed(backbone, DataArguments(dataset=str(folder)), tmp_path / "f.parquet").path)
    by_file, by_name = found.search([str(folder / "test/dog/10.png"), "test/dog/10.png"], 2)
    assert by_file == by_name and found.paths[by_file.query] == "test/dog/10.png"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["neighbors", "FILE", "--query", "train/dog/01.png"], "query is 'train/dog/01.png'; choose one of"),
        (["neighbors", "FILE", "--neighbors", "12"], "neighbors is 12 with 12 images; choose 1 to 11"),
        (["neighbors", "FILE", "--images", "NOWHERE"], "has no "),
        (["neighbors", "NOWHERE"], "NOWHERE does not exist; `hf-essl embed` writes such a file"),
        (["neighbors", "SOURCE"], "is no file of `hf-essl embed`"),
        (["embed", "BACKBONE", "NOWHERE"], "NOWHERE"),
        (["embed", "BACKBONE", "FOLDER", "--batch_size", "0"], "--batch_size: it is 0; it must be at least 1"),
    ],
)
def test_mistakes_are_one_line(words, message, backbone, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = embed(backbone, DataArguments(dataset=str(folder)), tmp_path / "f.parquet").path
    names = {"FILE": str(file), "BACKBONE": backbone, "FOLDER": str(folder), "SOURCE": __file__}
    capsys.readouterr()
    assert cli.main([names.get(word, word) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("hf-essl: error:") == 1 and "Traceback" not in error
