"""The picture of a search: images of a table, which are not files."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_essl.config import DataArguments
from hf_essl.evaluation.embed import embed
from hf_essl.evaluation.search import Embeddings
from hf_essl.reporting.found import draw_found
from tests.helpers import small_trainer


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    return str(small_trainer(folder / "run").export_backbone(folder / "backbone"))


def test_images_of_a_table_are_drawn(backbone, tmp_path):
    """Each image of one color, so that the picture must contain those of the query and of its neighbors."""
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    images = [{"image": Image.new("RGB", (40, 20), color), "label": index} for index, color in enumerate(colors)]
    source = tmp_path / "images.parquet"
    datasets.Dataset.from_list(images).to_parquet(source)
    found = Embeddings.read(embed(backbone, DataArguments(dataset=str(source)), tmp_path / "f.parquet").path)
    matches = found.search(["train/1"], 2)
    shown = [matches[0].query, *matches[0].neighbors]
    with Image.open(draw_found(found, matches, tmp_path / "n.png")) as drawn:
        seen = {color for _, color in drawn.convert("RGB").getcolors(2**24)}
    present = [any(all(abs(a - b) < 12 for a, b in zip(color, one, strict=True)) for one in seen) for color in colors]
    assert [index for index, there in enumerate(present) if there] == sorted(shown)
    datasets.Dataset.from_list(images[:3]).to_parquet(source)
    with pytest.raises(ValueError, match=r"are {'train': 3} now, but {'train': 4} in the file"):
        draw_found(found, matches, tmp_path / "n.png")


@pytest.mark.parametrize("kind", ["files", "table"])
def test_images_of_12_bits_are_drawn_as_bright_as_they_are_embedded(backbone, tmp_path, kind):
    deep = [Image.fromarray(np.full((20, 20), value, np.uint16)) for value in (4095, 0)]
    (tmp_path / "images").mkdir()
    for index, image in enumerate(deep):
        image.save(tmp_path / "images" / f"{index}.png")
    if kind == "table":
        rows = [{"image": {"bytes": path.read_bytes()}} for path in sorted((tmp_path / "images").iterdir())]
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "images.parquet")
    source = tmp_path / ("images" if kind == "files" else "images.parquet")
    done = embed(backbone, DataArguments(dataset=str(source), white_level=4095), tmp_path / "f.parquet")
    found = Embeddings.read(done.path)
    with Image.open(draw_found(found, found.search([found.paths[0]], 1), tmp_path / "n.png")) as drawn:
        values = np.asarray(drawn.convert("L"))
    row = values[len(values) // 2]
    assert (row == 255).sum() > 100 and (row == 0).sum() > 100, "white at 4,095, black at 0"
    assert not ((row > 5) & (row < 60)).sum() > 20, "4,095 of 65,535 would be 16"


def test_a_file_without_a_dataset_needs_images(tmp_path):
    found = Embeddings(["a.png", "b.png"], lambda: [torch.eye(2)])
    with pytest.raises(ValueError, match="does not name the dataset of its images; pass --images"):
        draw_found(found, found.search(["a.png"], 1), tmp_path / "n.png")
