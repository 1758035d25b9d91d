"""`hf-essl lr-find`: a picture and a suggestion."""

import re
from pathlib import Path

import pytest
from PIL import Image

from hf_essl import cli
from hf_essl.lr_finder import lr_range_test
from hf_essl.pretrain import build_trainer
from hf_essl.recipe import load_recipe

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


@pytest.mark.slow
def test_training_at_the_suggestion_beats_a_tenth_and_ten_times_of_it(tmp_path):
    """The quickstart's data and network, an epoch of the plain recipe at 32 px, by kNN accuracy."""
    small = "--use_cpu --disable_tqdm --save_strategy no --on_divergence warn --seed 1 --num_train_epochs 1"
    small += " --warmup_epochs 0.2 --resolution 32 --image_size 32 --resolution_schedule constant --selection none"

    def trainer(rate):
        words = [*small.split(), "--num_views", "2", "--output_dir", str(tmp_path), "--learning_rate", str(rate)]
        return build_trainer(load_recipe(RECIPE, words))

    suggestion = lr_range_test(trainer(0.05), steps=80, validation_images=128).suggestion
    accuracy = {}
    for factor in (0.1, 1, 10):
        run = trainer(factor * suggestion)
        run.train()
        accuracy[factor] = run.evaluate()["eval_knn_accuracy"]
    assert accuracy[1] > accuracy[0.1] and accuracy[1] > accuracy[10], (suggestion, accuracy)
