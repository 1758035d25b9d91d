"""`hf-essl lr-find`: a picture and a suggestion."""

import re
from pathlib import Path

from PIL import Image

from hf_essl import cli

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"


def test_the_command_draws_and_suggests(tmp_path, capsys):
    picture = tmp_path / "range.png"
    words = ["--steps", "12", "--validation_images", "16", "--max_train_samples", "64", "--max_eval_samples", "16"]
    words += ["--per_device_train_batch_size", "16", "--use_cpu", "--disable_tqdm", "--output", str(picture)]
    assert cli.main(["lr-find", str(RECIPE), *words]) == 0
    found = re.search(r"learning_rate: ([\d.e-]+)", capsys.readouterr().out)
    assert found and 1e-3 <= float(found[1]) <= 1.0
    with Image.open(picture) as image:
        assert image.width > 400


def test_a_range_that_is_none_is_one_line(capsys):
    assert cli.main(["lr-find", str(RECIPE), "--start", "1", "--end", "0.1", "--max_train_samples", "64"]) == 2
    assert "a test needs 0 < start < end" in capsys.readouterr().err
