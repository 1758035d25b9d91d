"""`hf-essl pretrain` as a user runs it: to the end, interrupted and resumed, and stopped by mistakes in its input."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_essl.common import Interrupted

ROOT = Path(__file__).parents[2]
SMALL = """
    --max_train_samples 256 --max_eval_samples 64 --num_train_epochs 3 --warmup_epochs 1 --logging_steps 1
    --image_size 32 --resolution 32 --min_resolution 16 --resolution_step 16 --selection_resolution 16
    --per_device_train_batch_size 32 --use_cpu true
""".split()


def start(*words, **options):
    code = "import sys; from hf_essl.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
        **options,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.slow
def test_interrupted_and_resumed_equals_never_interrupted(tmp_path):
    quickstart = ["pretrain", "recipes/quickstart.yaml", *SMALL]
    code, out, err = finish(start(*quickstart, "--output_dir", tmp_path / "whole"))
    assert code == 0, err
    assert re.search(r"kNN accuracy +\d+\.\d %", out) and re.search(r"at random initialization +\d+\.\d %", out)
    assert re.search(r"measured in wall-clock +\d+\.\d\d x", out)
    assert re.search(r"step 24/24 .* px +\d+ img/s +lr .*mom .*mag .*pF", err)

    cut = start(*quickstart, "--output_dir", tmp_path / "cut")
    while "step 3/24" not in (line := cut.stderr.readline()):
        assert line, "it ended before its third step"
    cut.send_signal(signal.SIGINT)
    code, out, err = finish(cut)
    assert code == 130
    assert "stopped by SIGINT after step" in err and "--resume_from_checkpoint true" in err
    assert "Traceback" not in err
    assert not (tmp_path / "cut" / "checkpoint-24").exists()

    code, out, err = finish(start(*quickstart, "--output_dir", tmp_path / "cut", "--resume_from_checkpoint", "true"))
    assert code == 0, err
    whole, resumed = (load_file(tmp_path / name / "checkpoint-24" / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())

    code, out, err = finish(start(*quickstart, "--output_dir", tmp_path / "cut"))
    assert code == 2
    assert "already holds a run; resume it with --resume_from_checkpoint true" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resolutoin", "64"], "unknown key 'resolutoin' in the command line; did you mean 'resolution'?"),
        (["--learning_rate", "fast"], "learning_rate is 'fast' in the command line; it should be a valid number"),
        (["--resolution", "100"], "resolution is 100, not a multiple of resolution_step 32; use 96 or 128"),
        (["--num_views", "1"], "num_views is 1 in the command line; it should be greater than or equal to 2"),
        (["--selection_resolution", "128"], "selection_resolution is 128, above resolution 96; lower it"),
        (["--warmup_epochs", "20"], "warmup_epochs is 20, not shorter than num_train_epochs 6"),
        (["--dataset", "./no/such/folder"], "dataset is ./no/such/folder, which does not exist; give a folder"),
        (["--backbone", "resnet51"], "backbone is 'resnet51', which is not a timm model; did you mean"),
        (["--method", "simsiaam"], "method is 'simsiaam'; choose one of simsiam"),
        (
            ["--method_args", "{projector_size: 3}"],
            "method_args contains 'projector_size', which simsiam does not accept",
        ),
        (["--resume_from_checkpoint", "true"], "no complete checkpoint in"),
    ],
)
def test_a_mistake_is_one_line_before_any_model_is_built(words, message, tmp_path, capsys, monkeypatch):
    from hf_essl import cli
    from hf_essl.methods import backbone

    monkeypatch.setattr(backbone, "build_backbone", lambda *_: pytest.fail("a model was built"))
    code = cli.main(["pretrain", str(ROOT / "recipes" / "quickstart.yaml"), "--output_dir", str(tmp_path), *words])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2
    assert message in error and error.startswith("hf-essl: error: ")
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


def test_help_lists_every_field(capsys):
    from hf_essl import cli

    with pytest.raises(SystemExit) as stop:
        cli.main(["pretrain", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for field in ("--backbone", "--dataset", "--min_resolution", "--lr_schedule", "--knn_every_epochs"):
        assert field in text


def test_no_recipe_is_one_line(capsys):
    from hf_essl import cli

    assert cli.main(["pretrain"]) == 2
    assert "RECIPE" in capsys.readouterr().err


def test_the_runs_of_a_wandb_sweep_have_folders_of_their_own(tmp_path, monkeypatch):
    """An agent sets both variables and passes `--key=value`."""
    from hf_essl import cli

    seen = []
    monkeypatch.setattr("hf_essl.pretrain.pretrain", lambda recipe, images: seen.append(recipe.training))
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    for run_id in ("a1", "b2"):
        monkeypatch.setenv("WANDB_RUN_ID", run_id)
        words = ["--learning_rate=0.3", f"--output_dir={tmp_path}/x", "--use_cpu"]
        assert cli.main(["pretrain", "quickstart", *words]) == 0
    assert [args.output_dir for args in seen] == [f"{tmp_path}/x-a1", f"{tmp_path}/x-b2"]
    assert {args.learning_rate for args in seen} == {0.3}
    monkeypatch.setenv("HF_ESSL_SUPERVISED", "1")  # started by --accelerate_config, which has named the folder
    assert cli.main(["pretrain", "quickstart", *words]) == 0
    assert seen[-1].output_dir == f"{tmp_path}/x"


def test_after_a_signal_the_command_that_continues_a_budget_is_shown(tmp_path, monkeypatch, capsys):
    from hf_essl import budget, cli

    def stopped(recipe, images):
        raise Interrupted("stopped by SIGTERM after step 3", 143)

    monkeypatch.setattr("hf_essl.pretrain.pretrain", stopped)
    monkeypatch.setattr(budget, "fit_budget", lambda recipe, budget: (recipe, None, "2 epochs"))
    words = ["pretrain", "quickstart", "--use_cpu", "--output_dir", str(tmp_path / "x")]
    assert cli.main([*words, "--budget", "1min"]) == 143
    shown = capsys.readouterr().err
    again = f"hf-essl pretrain {tmp_path}/x/recipe.yaml --resume_from_checkpoint true"
    assert f"after step 3; `{again}` continues" in shown and "the same command" not in shown
    monkeypatch.setenv("HF_ESSL_CONTINUED_BY", "`another command` continues")  # from the launcher
    assert cli.main([*words, "--budget", "1min"]) == 143
    assert "after step 3; `another command` continues" in capsys.readouterr().err
    monkeypatch.delenv("HF_ESSL_CONTINUED_BY")
    assert cli.main(words) == 143
    assert "after step 3; the same command with `--resume_from_checkpoint true` continues" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--plan"], ["--budget", "5epochs"]])
def test_what_a_chosen_run_cannot_have_is_refused_and_nothing_trains(option, tmp_path, capsys, monkeypatch):
    """A recipe has its settings, and a resumed run its plan."""
    from hf_essl import cli

    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "photos"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("dataset: photo-patches\n")
    (tmp_path / "photos").mkdir()
    assert cli.main(["pretrain", "photos", "--resume_from_checkpoint", "true", *option]) == 2
    assert f"{option[0][2:]} is given with resume_from_checkpoint" in capsys.readouterr().err
    if option == ["--plan"]:
        assert cli.main(["pretrain", "quickstart", "--plan"]) == 2
        assert "plan is given with the recipe quickstart" in capsys.readouterr().err
