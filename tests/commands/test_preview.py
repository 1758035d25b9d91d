import matplotlib.image
import numpy as np
import pytest

from hf_essl.cli import main
from hf_essl.recipe import load_recipe
from hf_essl.reporting.preview import draw_preview, preview, preview_panels

EFFICIENT = (
    "learning_rate: 0.1\nlr_schedule: f1_clr\nwarmup_epochs: 80\nnum_train_epochs: 480\nmin_resolution: 96\n"
    "resolution_schedule: super_progressive\nmin_magnitude: 4\nmax_magnitude: 6\nuse_cpu: true\n"
)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "efficient.yaml"
    path.write_text(EFFICIENT)

    def _load(*overrides):
        return load_recipe(path, overrides)

    return _load


def _at(series, epoch):
    return series.y[np.abs(series.x - epoch).argmin()]


def test_the_six_panels_hold_the_schedules_of_table_10(recipe):
    lr, momentum, lengths, magnitude, super_progressive, progressive = preview_panels(recipe())
    cosine, own = lr.series
    assert (cosine.label, own.label, own.own) == ("cosine", "f1_clr", True)
    assert [_at(own, e) for e in (0, 80, 280, 480)] == pytest.approx([0, 0.1, 0.05, 0], abs=1e-4)
    assert [_at(cosine, e) for e in (0, 240, 480)] == pytest.approx([0.1, 0.05, 0], abs=1e-4)

    cosine, own = momentum.series
    assert set(cosine.y) == {0.9}
    assert [_at(own, e) for e in (0, 80, 280, 480)] == pytest.approx([0.95, 0.85, 0.9, 0.95], abs=1e-4)

    assert [s.label for s in lengths.series] == [f"{n} epochs" for n in (160, 320, 480, 640, 800)]
    assert [s.own for s in lengths.series] == [False, False, True, False, False]
    for series in lengths.series:
        assert _at(series, 80) == pytest.approx(0.1, abs=2e-4) and series.y[-1] == pytest.approx(0)

    assert [_at(magnitude.series[0], e) for e in (0, 240, 480)] == pytest.approx([4, 5, 6])
    middles = (40, 120, 200, 280, 360, 440)
    assert [_at(super_progressive.series[0], e) for e in middles] == [224, 96, 128, 160, 192, 224]
    assert [_at(progressive.series[0], e) for e in (48, 144, 240, 336, 432)] == [96, 128, 160, 192, 224]
    assert super_progressive.series[0].own and not progressive.series[0].own


def test_a_plain_recipe_shows_its_own_constant_resolution_and_no_second_cosine(recipe):
    plain = recipe("--lr_schedule", "cosine", "--warmup_epochs", "0", "--resolution_schedule", "constant")
    panels = preview_panels(plain)
    assert [s.label for s in panels[0].series] == ["cosine"]
    assert [(s.label, s.own) for s in panels[4].series] == [("constant", True), ("super_progressive", False)]
    assert set(panels[4].series[0].y) == {224}


def test_a_weight_decay_that_moves_has_a_panel(recipe):
    panel = preview_panels(recipe("--weight_decay", "0.04", "--weight_decay_end", "0.4"))[-1]
    assert panel.title == "Weight decay"
    assert [_at(panel.series[0], e) for e in (0, 240, 480)] == pytest.approx([0.04, 0.22, 0.4])


def test_an_adam_without_a_cycle_rests_at_its_own_beta(recipe):
    adam = recipe("--lr_schedule", "cosine_warmup", "--optim", "adamw_torch", "--adam_beta1", "0.8")
    assert {y for series in preview_panels(adam)[1].series for y in series.y} == {0.8}


def test_the_figure_has_two_rows_of_three_labeled_panels(recipe):
    figure = draw_preview(recipe())
    assert len(figure.axes) == 6
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 3)
    for axis in figure.axes:
        assert axis.get_xlabel() == "epoch" and axis.get_ylabel() and axis.get_title()


def test_a_token_curriculum_has_a_seventh_panel(recipe):
    figure = draw_preview(recipe("--min_tokens", "0.25"))
    assert [axis.get_title() for axis in figure.axes][6:] == ["Patch tokens"]
    (tokens,) = preview_panels(recipe("--min_tokens", "0.25"))[6].series
    assert [_at(tokens, e) for e in (60, 180, 300, 420)] == [0.25, 0.5, 0.75, 1.0]


def test_the_command_writes_one_png_and_prints_its_path(recipe, tmp_path, capsys):
    recipe()
    target = tmp_path / "new" / "p.png"
    assert (
        main(["preview", str(tmp_path / "efficient.yaml"), "--output", str(target), "--num_train_epochs", "200"]) == 0
    )
    assert capsys.readouterr().out.endswith(f"view (image_size 400)\n{target}\n")
    assert [p.name for p in target.parent.iterdir()] == ["p.png"]
    height, width, _ = matplotlib.image.imread(target).shape
    assert width > 1000 and height > 600


def test_another_suffix_is_refused(recipe):
    with pytest.raises(ValueError, match=r"output is p.pdf; the picture is a PNG, name it p.png"):
        preview(recipe(), "p.pdf")


def test_the_command_draws_views_of_the_recipes_images_on_request(recipe, tmp_path, capsys):
    recipe()
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
            matplotlib.image.imsave(tmp_path / "images" / label / f"{number}.png", pixels)
    words = ["--dataset", str(tmp_path / "images"), "--image_size", "224", "--output", str(tmp_path / "p.png")]
    assert main(["preview", str(tmp_path / "efficient.yaml"), *words, "--views", str(tmp_path / "v.png")]) == 0
    assert capsys.readouterr().out.endswith(f"\n{tmp_path / 'p.png'}\n{tmp_path / 'v.png'}\n")
    assert matplotlib.image.imread(tmp_path / "v.png").shape[0] > 800


def test_views_in_another_format_are_refused_before_any_image_is_read(recipe, tmp_path, capsys):
    recipe()
    words = ["--dataset", str(tmp_path / "nowhere"), "--output", str(tmp_path / "p.png"), "--views", "v.gif"]
    assert main(["preview", str(tmp_path / "efficient.yaml"), *words]) == 2
    assert "output is v.gif; the picture is a PNG" in capsys.readouterr().err
