"""The pictures: that they show what they are given, and are written whole or not at all."""

import pytest
from matplotlib.figure import Figure

from hf_essl.config import ViewArguments
from hf_essl.data import sample_images
from hf_essl.reporting.curves import draw_curves, stages_of
from hf_essl.reporting.figures import draw_views, save_figure
from hf_essl.schedules import Curriculum
from hf_essl.views.tiles import tile_views
from tests.helpers import patches

VIEWS = ViewArguments(
    resolution=96, min_resolution=32, resolution_schedule="super_progressive", min_magnitude=4, max_magnitude=6
)


def test_views_show_start_middle_and_end_of_the_curriculum(drawn, tmp_path):
    images, _ = sample_images(patches("train", 32), 2)
    curriculum = Curriculum.with_warmup(VIEWS, 0.2)
    draw_views(images, VIEWS, curriculum, tmp_path / "views.png", columns=3, seed=1)
    axes = drawn[0].axes
    titles = [axis.get_title().split(";")[0] for axis in axes]
    assert titles == ["start: 96 px, magnitude 4.00", "middle: 64 px, magnitude 5.00", "end: 96 px, magnitude 6.00"]
    for axis, resolution, magnitude in zip(axes, (96, 64, 96), (4.0, 5.0, 6.0), strict=True):
        expected = tile_views(images, VIEWS, resolution, magnitude, columns=3, seed=1)
        assert (axis.images[0].get_array() == expected).all()


def test_views_gray_out_the_patches_that_are_dropped(drawn, tmp_path):
    """A quarter of 16 patches of 8 px at the start and all at the end."""
    images, _ = sample_images(patches("train", 32), 2)
    args = ViewArguments(resolution=32, min_tokens=0.25, token_stages=2)
    draw_views(
        images, args, Curriculum.with_warmup(args, 0.0), tmp_path / "v.png", 3, patches=lambda side: side**2 // 64
    )
    start, _, end = drawn[0].axes
    assert start.get_title().startswith("start: 32 px, 25 % of the tokens, magnitude")
    assert end.get_title().startswith("end: 32 px, magnitude")
    tile = (end.images[0].get_array().shape[1] - 4) // 4 - 4  # side of a tile: an original and three views in a row
    views = [(4 + row * (tile + 4), 4 + column * (tile + 4)) for row in range(2) for column in range(1, 4)]
    for axis, kept in ((start, 4), (end, 16)):
        pixels = axis.images[0].get_array()
        side = tile // 4
        for top, left in views:
            cells = [(top + side * i, left + side * j) for i in range(4) for j in range(4)]
            gray = [(pixels[y : y + side, x : x + side] == 128).all() for y, x in cells]
            assert gray.count(False) == kept


def test_curves_show_the_history(drawn, tmp_path):
    history = [
        {"step": 0, "eval_knn_accuracy": 70.0, "eval_retrieval": 12.0, "eval_rankme": 30.0},
        {"step": 10, "loss": -0.2, "learning_rate": 0.1, "momentum": 0.9, "resolution": 96, "magnitude": 4.0},
        {"step": 20, "loss": -0.4, "learning_rate": 0.2, "momentum": 0.85, "resolution": 64, "magnitude": 5.0},
        {"step": 20, "eval_knn_accuracy": 80.0, "eval_retrieval": 50.0, "eval_rankme": 25.0},
    ]
    draw_curves(history, tmp_path / "curves.png", stages=[(0, 96), (15, 64), (20, 64)])
    lines = {axis.get_ylabel(): axis.lines for axis in drawn[0].axes}
    assert lines["loss"][0].get_xydata().tolist() == [[10, -0.2], [20, -0.4]]
    assert [line.get_xydata().tolist() for line in lines["%"][:2]] == [[[0, 70], [20, 80]], [[0, 12], [20, 50]]]
    assert [line.get_ydata()[0] for line in lines["%"][2:4]] == [70, 12], "dashed: before training"
    assert lines["momentum"][0].get_xydata().tolist() == [[10, 0.9], [20, 0.85]]
    assert lines["resolution (px)"][0].get_xydata().tolist() == [[0, 96], [15, 64], [20, 64]]
    assert "images/s" not in lines, "a panel without a value is left out"
    dotted = [line.get_xdata()[0] for line in lines["loss"] if line.get_linestyle() == ":"]
    assert dotted == [15], "the resolution changes once"


@pytest.mark.parametrize("schedule", ["constant", "super_progressive"])
def test_stages_are_where_the_resolution_changes(schedule):
    views = ViewArguments(resolution=96, min_resolution=32, resolution_step=32, resolution_schedule=schedule)
    curriculum = Curriculum.with_warmup(views, 0.25)
    sizes = [curriculum.resolution(step / 40) for step in range(40)]
    stages = stages_of(curriculum, 40)
    assert stages[0] == (0, 96) and stages[-1] == (40, sizes[-1])
    assert [sizes[step - 1] != sizes[step] for step, _ in stages[1:-1]] == [True] * (len(stages) - 2)
    assert len(stages) == {"constant": 2, "super_progressive": 5}[schedule]  # 96, 32, 64, 96 px, and the end


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    save_figure(Figure(), tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_figure(Figure(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
