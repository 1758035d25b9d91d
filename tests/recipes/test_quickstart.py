"""The quickstart learns: a third of it, on the full data, beats its own random initialisation by far."""

import math
from pathlib import Path

import pytest

from hf_essl.pretrain import pretrain
from hf_essl.recipe import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_third_of_the_quickstart_learns_and_does_not_collapse(tmp_path):
    shorter = "--num_train_epochs 2 --warmup_epochs 0.5 --knn_every_epochs 0 --disable_tqdm --use_cpu".split()
    shorter += ["--output_dir", str(tmp_path)]
    metrics = pretrain(load_recipe(ROOT / "recipes" / "quickstart.yaml", shorter))
    assert metrics["knn_accuracy"] > metrics["random_init_knn_accuracy"] + 5
    assert metrics["embedding_std"] > 0.8 / math.sqrt(512)  # 1 / sqrt(D) is healthy, 0 is collapse
    assert metrics["predicted_speedup"] > 1.2 and metrics["measured_speedup"] > 0.5
