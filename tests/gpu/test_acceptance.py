"""The rehearsal of the acceptance command on a CPU."""

import json

import pytest
import torch

from tests.gpu import acceptance
from tests.gpu.stages import STAGES


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="rehearses on a CPU")
def test_a_rehearsal_runs_every_stage_and_writes_its_report(tmp_path):
    assert acceptance.main(["--images", "photo-patches", "--out", str(tmp_path), "--minutes", "15"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert {name: stage["state"] for name, stage in report["stages"].items()} == dict.fromkeys(STAGES, "done")
    assert report["stages"]["equality"]["found"]["dino_gradient"] == 0, "a CPU equals itself"
    text = (tmp_path / "report.md").read_text()
    assert all(f"## {name}" in text for name in STAGES) and "rehearsal: yes" in text
    assert (tmp_path / "report.png").stat().st_size > 5_000


def test_a_stage_that_fails_or_has_no_time_is_told_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    states = iter(["failed: not done in 90 s", "done"])
    monkeypatch.setattr(acceptance, "run_stage", lambda *_: {"state": next(states), "seconds": 1.0, "found": {}})
    words = ["--images", "x", "--out", str(tmp_path), "--only", "tests", "equality"]
    assert acceptance.main(words) == 1
    assert capsys.readouterr().out.splitlines() == ["tests: failed: not done in 90 s", "equality: done"]
    assert acceptance.main([*words, "--minutes", "0.01"]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["stages"]["tests"] == {"state": "no time left"}
