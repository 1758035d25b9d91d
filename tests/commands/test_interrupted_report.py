"""A report that was interrupted: the next command that needs it completes it, or says why it cannot."""

import json
import shutil

import pytest

from hf_essl.cli import main
from hf_essl.pretrain import complete_report, pretrain
from hf_essl.recipe import load_recipe
from tests.fault_runs import same_weights

SMALL = """
    --max_train_samples 64 --max_eval_samples 32 --max_steps 2 --logging_steps 1 --save_strategy steps --save_steps 1
    --image_size 32 --resolution 32 --min_resolution 16 --resolution_step 16 --selection_resolution 16 --num_views 3
    --per_device_train_batch_size 16 --use_cpu true --measure_speedup false --disable_tqdm true
""".split()
WRITTEN = ["curves.png", "views.png", "neighbors.png", "backbone/model.safetensors", "backbone/README.md"]
"""The files of a report in the order of their writing, before metrics.json."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    pretrain(load_recipe("quickstart", [*SMALL, "--output_dir", str(folder)]))
    return folder


@pytest.mark.parametrize(("command", "kept"), [("card", 0), ("compare", 2), ("card", 4)])
def test_it_is_completed_by_the_next_command(finished, command, kept, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(finished, tmp_path / "run")
    for name in [*WRITTEN[kept:], "metrics.json"]:
        (run / name).unlink()
    assert main([command, str(run)]) == 0
    assert f"{run} was interrupted after its last step; its report is completed" in capsys.readouterr().out
    for name in ("curves.png", "views.png", "neighbors.png"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()
    assert same_weights(run / WRITTEN[3], finished / WRITTEN[3]) and (run / WRITTEN[4]).exists()
    ours, whole = (json.loads((folder / "metrics.json").read_text()) for folder in (run, finished))
    for key in ("knn_accuracy", "rankme", "retrieval", "steps", "images_seen", "petaflops", "random_init_rankme"):
        assert ours.get(key) == whole.get(key), key
    assert main([command, str(run)]) == 0
    assert "interrupted" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (["metrics.json", "checkpoint-2"], "it stopped at step 1 of 2: `hf-essl pretrain RUN/recipe.yaml --resume_fr"),
        (["metrics.json", "checkpoint-1", "checkpoint-2"], "no whole checkpoint: start it again with `hf-essl pretr"),
        (["metrics.json", "recipe.yaml"], "pass a folder that contains metrics.json"),
    ],
)
def test_a_run_that_has_not_ended_is_one_line(finished, lost, message, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    for name in lost:
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    assert main(["card", str(run)]) == 2
    errors = capsys.readouterr().err
    assert message.replace("RUN", str(run)) in errors and errors.count("\n") == 1
    assert not (run / "metrics.json").exists()


def test_what_cannot_be_completed_says_why(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "metrics.json").unlink()
    recipe = (run / "recipe.yaml").read_text().replace("dataset: photo-patches", "dataset: /no/such/folder")
    (run / "recipe.yaml").write_text(recipe)
    with pytest.raises(ValueError, match=r"run has no report, and it cannot be completed here: .*/no/such/folder"):
        complete_report(run)


def test_a_finished_run_and_other_folders_stay_as_they_are(finished, tmp_path, capsys):
    before = (finished / "metrics.json").stat().st_mtime_ns
    for folder in (finished, tmp_path, tmp_path / "nowhere"):
        complete_report(folder)
    assert (finished / "metrics.json").stat().st_mtime_ns == before and list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
