"""`hf-essl cost`: a table and JSON, without training."""

import json

import pytest

from hf_essl import cli
from hf_essl.config.files import baseline_of


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(
        "backbone: test_resnet\nmethod: byol\nmethod_args: {projector_hidden: 32, projector_dim: 16}\n"
        "resolution: 64\nnum_train_epochs: 10\nper_device_train_batch_size: 64\nuse_cpu: true\n"
    )
    return path


def table(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.strip().splitlines()]


def test_speedups_are_over_the_declared_baseline(recipe, tmp_path, capsys):
    half = tmp_path / "half.yaml"
    half.write_text("extends: small.yaml\nbaseline: small.yaml\nnum_train_epochs: 5\n")
    assert cli.main(["cost", str(recipe), str(half), "--json", str(tmp_path / "cost.json")]) == 0
    header, _, first, second = table(capsys.readouterr().out)
    assert header[:6] == ["recipe", "epochs", "steps", "over", "paper: pF", "speed-up"]
    assert first[:4] == ["small", "10", "640", "plain, equal epochs"] and first[5] == "1.00 x"  # 4,096 photo patches
    assert second[:4] == ["half", "5", "320", "small"] and second[5] == second[8] == "2.00 x"
    written = json.loads((tmp_path / "cost.json").read_text())
    assert [row["recipe"] for row in written] == ["small", "half"]
    parts = [written[0][f"counted_{part}_petaflops"] for part in ("forward", "backward", "teacher", "selection")]
    assert sum(parts) == pytest.approx(written[0]["counted_petaflops"]) and parts[2] > 0 and parts[3] == 0
    assert written[1]["over_baseline_counted"] == pytest.approx(2.0)


def test_a_baseline_is_inherited_but_not_by_itself(recipe, tmp_path):
    """Also not by what extends it: it is plain as well."""
    files = {
        "efficient": "extends: small.yaml\nbaseline: small.yaml\n",
        "longer": "extends: efficient.yaml\nnum_train_epochs: 20\n",
        "plain": "extends: base.yaml\n",
        "base": "baseline: plain.yaml\n",
        "other_plain": "extends: plain.yaml\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    found = {name: baseline_of(tmp_path / f"{name}.yaml") for name in files}
    small, plain = recipe, tmp_path / "plain.yaml"
    assert found == {"efficient": small, "longer": small, "plain": None, "base": plain, "other_plain": None}


def test_two_recipes_of_one_name_are_told_apart(recipe, tmp_path, capsys):
    other = tmp_path / "other" / "small.yaml"
    other.parent.mkdir()
    other.write_text("extends: ../small.yaml\nnum_train_epochs: 5\n")
    assert cli.main(["cost", str(recipe), str(other)]) == 0
    names = [row[0] for row in table(capsys.readouterr().out)[2:]]
    assert names == [f"{tmp_path.name}/small", "other/small"]


def test_another_baseline_and_other_sizes(recipe, capsys):
    words = ["--baseline", str(recipe), "--images", "1280", "--processes", "2", "--num_train_epochs", "3"]
    assert cli.main(["cost", str(recipe), *words]) == 0
    assert table(capsys.readouterr().out)[2][:4] == ["small", "3", "30", "small"]


def test_mistakes_are_one_line(recipe, capsys):
    assert cli.main(["cost", str(recipe), "--images", "32"]) == 2
    assert "32 training images do not fill a batch of 64" in capsys.readouterr().err
    assert cli.main(["cost", str(recipe), "--backbone", "resnet5O"]) == 2
    assert "did you mean" in capsys.readouterr().err
