"""Command lines that cannot work end in one line and exit code 2 before images are loaded."""

import shlex

import pytest

from hf_essl.cli import main
from hf_essl.config.values import parse_overrides
from hf_essl.methods import METHODS
from tests.fault_inputs import drawn, drawn_texts, holds_as_text, is_refused, outcome

WRONG = r"""
pretrain quickstart --method_args "{projector_dim: huge}"
pretrain quickstart --method_args "{projector_dim: 1.5}"
pretrain quickstart --method_args "{projector_dim: -3}"
pretrain quickstart --method_args "{projector_dim: 0}"
pretrain quickstart --method mocov2 --method_args "{queue_length: 0}"
pretrain quickstart --method mocov2 --method_args "{queue_length: -64}"
pretrain quickstart --method byol --method_args "{momentum: 2}"
pretrain quickstart --method dino --method_args "{output_dim: 0}"
pretrain quickstart --method simclr --method_args "{temperature: .nan}"
pretrain quickstart --backbone resnet50.nothere
pretrain quickstart --backbone_args "{nope: 1}"
pretrain quickstart --backbone_args "{drop_path_rate: abc}"
pretrain quickstart --backbone_args "{num_classes: 10}"
pretrain quickstart --neftune_noise_alpha 5
pretrain quickstart --label_smoothing_factor 0.1
pretrain quickstart --use_liger_kernel true
pretrain quickstart --optim adamw_bnb_8bit
pretrain quickstart --torch_compile_mode bogus
pretrain quickstart --log_level loud
pretrain quickstart --learning_rate 0
pretrain quickstart --max_steps -5
pretrain quickstart --max_grad_norm -1
pretrain quickstart --logging_steps -1
pretrain quickstart --save_steps 0
pretrain quickstart --save_total_limit -1
pretrain quickstart --knn_every_epochs -1
pretrain quickstart --eval_steps 0
pretrain quickstart --data_seed -1
pretrain quickstart --seed 5000000000
pretrain quickstart --train_sampling_strategy x
pretrain quickstart --optim_args "x="
pretrain quickstart --output_dir /proc/nothing
cost quickstart --processes 0
cost quickstart --images 0
evaluate RUN --dataset photo-patches --seed -1
evaluate RUN --dataset photo-patches --batch_size 0
compare RUN --output c.xyz
card RUN --repo_id a/b/c
lr-find quickstart --output /no/such/folder/x.png
lr-find quickstart --start 1 --end 0.1
lr-find quickstart --steps 0
lr-find quickstart --knn_k 0
lr-find quickstart --seed -1
lr-find quickstart --weight_decay -1
"""


COMMANDS = [*map(shlex.split, WRONG.strip().splitlines()), ["card", "RUN", "--license", "two\nlines"]]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_that_cannot_work_is_refused_in_one_line(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_refused(words), outcome(words)


def test_drawn_values_outside_of_their_type_or_range_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [words for words in drawn(300, seed=1) if not is_refused(words)] == []


@pytest.mark.slow
def test_drawn_texts_are_accepted_or_refused_and_nothing_escapes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [words for words in drawn_texts(150, seed=1) if not holds_as_text(words)] == []


@pytest.mark.parametrize("text", ["runs/try #2", "none", "null", "a: b", "{x", "7", "true", "~/x", "[1"])
def test_text_on_the_command_line_is_literal(text):
    found = parse_overrides(["--output_dir", text, f"--dataset={text}"])
    assert found == {"output_dir": text, "dataset": text}


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("batch_sise", "per_device_train_batch_size"),
        ("epoch", "num_train_epochs"),
        ("learning_rte", "learning_rate"),
        ("workers", "dataloader_num_workers"),
    ],
)
def test_an_unknown_name_is_answered_with_the_field(word, field):
    code, errors = outcome(["pretrain", "quickstart", f"--{word}", "3"])
    assert code == 2 and f"did you mean {field!r}?" in errors


@pytest.mark.parametrize(
    ("method", "argument", "value"),
    [
        ("simclr", "temperature", 0),
        ("byol", "momentum", 2),
        ("dino", "output_dim", 0),
        ("simsiam", "projector_dim", "x"),
    ],
)
def test_a_method_built_by_hand_checks_its_arguments(method, argument, value):
    with pytest.raises(ValueError, match=f"^{argument} is {value!r}; .*default"):
        METHODS[method](None, **{argument: value})


@pytest.mark.parametrize(
    "words",
    [
        "cost quickstart --json {gone}/x.json",
        "cost quickstart --json {folder}",
        "embed nowhere nowhere --output {gone}/f.parquet",
        "evaluate nowhere --dataset photo-patches --output {gone}/r.json",
        "export nowhere --format torch --output {file}",
        "export nowhere --format torch --output {gone}/out",
        "card nowhere --into {file}",
        "neighbors nowhere --output {gone}/n.png",
    ],
)
def test_an_output_is_tried_before_the_work(words, tmp_path, capsys):
    """The error names the path, although the source is wrong as well."""
    (tmp_path / "file").write_text("x")
    places = {"gone": tmp_path / "no" / "such", "file": tmp_path / "file", "folder": tmp_path}
    assert main([word.format(**places) for word in words.split()]) == 2
    err = capsys.readouterr().err
    assert str(tmp_path) in err and err.count("\n") == 1
