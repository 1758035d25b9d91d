"""Nearest neighbors against those found by hand, and the picture of them."""

import pytest
import torch
from PIL import Image

from hf_essl import draw_neighbors
from hf_essl.reporting.neighbors import nearest_neighbors

FEATURES = torch.tensor([[1.0, 0.0], [10.0, 1.0], [0.0, 2.0], [-1.0, 0.0], [0.1, 0.1]])


def colors(folder):
    paths = []
    for name in ("red", "darkred", "blue", "navy", "green"):
        paths.append(folder / f"{name}.png")
        Image.new("RGB", (40, 20), name).save(paths[-1])
    return paths


def test_neighbors_are_those_of_the_smallest_angle_without_the_query():
    similarity, nearest = nearest_neighbors(FEATURES, [0, 2], 2)
    assert nearest.tolist() == [[1, 4], [4, 1]]
    cosines = [[10 / 101**0.5, 0.5**0.5], [0.5**0.5, 1 / 101**0.5]]
    torch.testing.assert_close(similarity, torch.tensor(cosines))


def test_each_row_shows_the_query_and_its_neighbors(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("hf_essl.reporting.neighbors.save_figure", lambda figure, path: figures.append(figure))
    draw_neighbors(colors(tmp_path), FEATURES, tmp_path / "n.png", queries=[0, 2], neighbors=2)
    axes = figures[0].axes
    assert [axis.get_title() for axis in axes] == ["query", "1.00", "0.71", "query", "0.71", "0.10"]
    shown = [tuple(axis.get_images()[0].get_array()[0, 0].tolist()) for axis in axes]
    assert shown == [(255, 0, 0), (139, 0, 0), (0, 128, 0), (0, 0, 255), (0, 128, 0), (139, 0, 0)]


def test_it_is_written_as_a_picture(tmp_path):
    path = draw_neighbors(colors(tmp_path), FEATURES, tmp_path / "out" / "n.png", queries=2, neighbors=3)
    with Image.open(path) as picture:
        assert picture.width > 300 and len(picture.convert("RGB").getcolors(10**6)) > 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neighbors": 5}, "neighbors is 5 with 5 images; choose 1 to 4"),
        ({"queries": 6}, "queries is 6 with 5 images; choose 1 to 5"),
        ({"queries": [5]}, "queries contains 5; the indices of 5 images are 0 to 4"),
    ],
)
def test_a_question_that_cannot_be_drawn(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw_neighbors(colors(tmp_path), FEATURES, tmp_path / "n.png", **{"neighbors": 2, **settings})
    with pytest.raises(ValueError, match="5 images with 4 features"):
        draw_neighbors(colors(tmp_path), FEATURES[:4], tmp_path / "n.png")
