import re
from pathlib import Path

import pytest
import yaml

from hf_essl.config import DataArguments, ModelArguments, SSLTrainingArguments, ViewArguments
from hf_essl.config.values import GROUPS, RecipeError
from hf_essl.recipe import describe_fields, load_recipe
from hf_essl.schedules import warmup_fraction

EFFICIENT = """
lr_schedule: f1_clr
learning_rate: 1e-1
warmup_epochs: 80
num_train_epochs: 480
resolution_schedule: super_progressive
min_resolution: 96
blur_p: [1.0, 0.1]
method_args: {projector_dim: 8, predictor_hidden: 4}
use_cpu: true
"""


@pytest.fixture
def write(tmp_path):
    def _write(text, name="r.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return _write


def _error(path, *overrides) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- loading ----


def test_each_field_reaches_its_group(write):
    recipe = load_recipe(write(EFFICIENT))
    assert recipe.training.lr_schedule == "f1_clr"
    assert recipe.views.min_resolution == 96 and recipe.views.blur_p == [1.0, 0.1]
    assert recipe.model.method_args == {"projector_dim": 8, "predictor_hidden": 4}
    assert recipe.data == DataArguments()
    assert recipe.source.endswith("r.yaml")


def test_numbers_that_yaml_reads_as_text_become_numbers(write):
    assert yaml.safe_load("5e-4") == "5e-4"
    recipe = load_recipe(write("weight_decay: 5e-4\nnum_train_epochs: 10\n"))
    assert recipe.training.weight_decay == 0.0005
    assert isinstance(recipe.training.num_train_epochs, float)


def test_a_child_overrides_its_base_and_replaces_mappings_whole(write):
    write(EFFICIENT, "sub/base.yaml")
    write("extends: sub/base.yaml\nnum_train_epochs: 800\nmethod_args: {projector_dim: 3}\n", "middle.yaml")
    recipe = load_recipe(write("extends: middle.yaml\nwarmup_epochs: 40\n", "top.yaml"))
    assert (recipe.training.num_train_epochs, recipe.training.warmup_epochs) == (800, 40)
    assert recipe.model.method_args == {"projector_dim": 3}
    assert recipe.views.min_resolution == 96


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--max_steps 2", "max_steps", 2),
        ("--max_steps=2", "max_steps", 2),
        ("--max-steps 2", "max_steps", 2),
        ("--max_steps -1", "max_steps", -1),
        ("--max_steps 2 --max_steps 3", "max_steps", 3),
        ("--full_determinism --use_cpu", "full_determinism", True),
        ("--dataloader_drop_last false", "dataloader_drop_last", False),
        ("--blur_p 0.5 0.25", "blur_p", [0.5, 0.25]),
        ("--blur_p [0.5,0.25]", "blur_p", [0.5, 0.25]),
        ("--blur_p 0.5", "blur_p", [0.5]),
        ("--method_args {projector_dim:_5}", "method_args", {"projector_dim": 5}),
        ("--learning_rate 3e-2", "learning_rate", 0.03),
        ("--run_name 7", "run_name", "7"),
        ("--dataset none", "dataset", "none"),
        ("--cache none", "cache", "none"),
        ("--max_train_samples none", "max_train_samples", None),
        ("--eval_split null", "eval_split", None),
        ("--report_to none", "report_to", []),
        ("--report_to wandb", "report_to", ["wandb"]),
        ("--report_to wandb tensorboard", "report_to", ["wandb", "tensorboard"]),
        ("--eval_strategy no", "eval_strategy", "no"),
        ("--resume_from_checkpoint true", "resume_from_checkpoint", True),
        ("--resume_from_checkpoint out/checkpoint-5", "resume_from_checkpoint", "out/checkpoint-5"),
    ],
)
def test_override_words(write, words, field, value):
    recipe = load_recipe(write(EFFICIENT), [word.replace(":_", ": ") for word in words.split()])
    group = next(g for g in (recipe.model, recipe.data, recipe.views, recipe.training) if hasattr(g, field))
    assert getattr(group, field) == value


def test_max_steps_shortens_a_recipe_and_keeps_its_shape(write):
    recipe = load_recipe(write(EFFICIENT), ["--max_steps", "2"])
    assert warmup_fraction(recipe.training) == pytest.approx(1 / 6)


# ---- mistakes ----


def test_the_nearest_key_is_suggested_with_the_file(write):
    path = write("resolutoin: 96\n", "quickstart.yaml")
    assert _error(path) == f"unknown key 'resolutoin' in {path}; did you mean 'resolution'?"
    message = _error(write(EFFICIENT), "--learning-rat", "1")
    assert message == "unknown key 'learning_rat' in the command line; did you mean 'learning_rate'?"


def test_a_mistake_in_a_base_names_the_base(write):
    write("pretrained: maybe\n", "base.yaml")
    assert _error(write("extends: base.yaml\n", "top.yaml")).startswith("pretrained is 'maybe' in ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rate: fast", "learning_rate is 'fast' in .*; it should be a valid number.* .default: 0.05."),
        ("learning_rate: .nan", "learning_rate is nan in .*; it should be a finite number"),
        ("num_views: true", "num_views is True in .*; expected an integer"),
        ("num_views: 1.5", "num_views is 1.5 in .*; it should be a valid integer"),
        ("flip_p: true", "flip_p is True in .*; expected a number"),
        ("blur_p: [0.1, true]", "blur_p is .*; expected a list, not true or false"),
        ("blur_p: 0.1", "blur_p is 0.1 in .*; it should be a valid list"),
        ("backbone: 50", "backbone is 50 in .*; it should be a valid string"),
        ("backbone: null", "backbone is None in .*; it should be a valid string"),
        ("backbone_args: [1]", "backbone_args is .*; it should be a valid dictionary"),
        ("min_resolution: big", "min_resolution is 'big' in .*; it should be a valid integer"),
        ("cache: ram", "cache is 'ram' in .*; it should be 'none', 'memory', 'disk' or 'device'"),
        ("eval_strategy: no", "eval_strategy is False in .*in quotes, 'no', it is text"),
        ("hub_token: hf_abc", "hub_token is not accepted.*HF_TOKEN"),
        ("hf_token: hf_abc", "hf_token is not accepted.*HF_TOKEN"),
        ("push_to_hub_token: hf_abc", "push_to_hub_token is not accepted.*HF_TOKEN"),
        ("lr_scheduler_type: linear", "lr_scheduler_type is not accepted.*set lr_schedule instead"),
        ("warmup_steps: 10", "warmup_steps is not accepted.*set warmup_epochs instead"),
        ("method: simsaim", "method is 'simsaim'; choose one of .*did you mean 'simsiam'"),
        ("optim: sdg", "optim is 'sdg'; choose one of lars, sgd, .*did you mean 'sgd'"),
        ("{optim: lars, optim_args: trust=1}", "optim_args is 'trust'; choose one of trust_coeff"),
        (
            "{compile_views: true, jitter_order: random}",
            "compile_views is true with jitter_order: random.*set jitter_",
        ),
        ("{compile_views: true, view_executor: kornia}", "compile_views is true with view_executor: kornia"),
        ("num_train_epochs: 0", "num_train_epochs is 0 in .*; it should be greater than 0"),
        ("resolution: 100", "resolution is 100, not a multiple"),
        ("eval_holdout: 2", "eval_holdout is 2 in .*; it should be less than 1"),
        ("warmup_epochs: 5", "warmup_epochs is 5 with lr_schedule cosine"),
        ("streaming: true", "max_steps is -1 with streaming: true"),
        ("{resolution_schedule: super_progressive, min_resolution: 96}", "super_progressive but .* no warm-up"),
        ("extends: [a.yaml]", "extends is .*it takes the path of one recipe"),
        ("1: 2", "unknown key '1'"),
    ],
)
def test_values_that_cannot_work_are_refused_in_one_line(write, line, message):
    text = _error(write(line + "\n"))
    assert re.search(message, text), text
    assert "hf_abc" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected lines of `field: value`"),
        ("- a\n- b\n", "is a list; expected lines of `field: value`"),
        ("resolution: 96\nblur_p: [1.0\nmethod: x\n", "is not valid YAML in line 3"),
        ("resolution: 96\nmethod: simsiam\nresolution: 128\n", "in line 3: resolution is given twice"),
    ],
)
def test_files_that_are_no_recipe(write, text, message):
    assert message in _error(write(text))


def test_a_missing_file_a_folder_a_binary_and_a_circle(write, tmp_path):
    assert _error(tmp_path / "no.yaml") == f"recipe {tmp_path / 'no.yaml'} cannot be read: No such file or directory"
    assert "cannot be read: Is a directory" in _error(tmp_path)
    assert "no.yaml, which" in _error(write("extends: no.yaml\n"))
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\xff")
    assert "is not UTF-8 text" in _error(tmp_path / "b.yaml")
    write("extends: two.yaml\n", "one.yaml")
    write("extends: ./one.yaml\n", "two.yaml")
    assert _error(tmp_path / "one.yaml").endswith("in a circle: one.yaml -> two.yaml -> one.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stray"], "unexpected word 'stray'"),
        (["--max_steps=2", "3"], "unexpected word '3'"),
        (["--max_steps", "2", "3"], "--max_steps has 2 values on the command line; it takes one"),
        (["--max_steps"], "--max_steps has no value on the command line; write --max_steps VALUE"),
        (["--output_dir="], "--output_dir has no value"),
        (
            ["--max_steps", "2.5"],
            "max_steps is 2.5 in the command line; it should be -1 or it should be a valid integer",
        ),
        (["--method_args", "{a: "], "method_args is '{a: ' in the command line; it should be a valid dictionary"),
        (["--hub-token", "hf_abc"], "hub_token is not accepted in the command line"),
    ],
)
def test_overrides_that_cannot_work(write, words, message):
    assert message in _error(write(EFFICIENT), *words)


def test_nothing_of_the_training_arguments_is_built_before_the_checks(write, monkeypatch):
    monkeypatch.setattr(SSLTrainingArguments, "__post_init__", lambda self: pytest.fail("a device was touched"))
    assert "warmup_epochs is 900" in _error(write(EFFICIENT), "--warmup_epochs", "900")


# ---- writing and describing ----


def test_the_resolved_recipe_loads_back_to_an_equal_one(write, tmp_path):
    write(EFFICIENT, "base.yaml")
    path = write("extends: base.yaml\neval_strategy: 'no'\nrun_name: 'a: b # c'\noutput_dir: ~/runs/x\n")
    recipe = load_recipe(path, ["--seed", "7", "--jitter", "0.1", "0.2", "0.3", "0.04", "--eval_split", "none"])
    text = recipe.to_yaml()
    (tmp_path / "resolved.yaml").write_text(text)
    assert load_recipe(tmp_path / "resolved.yaml") == recipe
    content = yaml.safe_load(text)
    assert content["seed"] == 7 and content["output_dir"] == "~/runs/x" and content["learning_rate"] == 0.1
    assert "extends" not in content and str(tmp_path) not in text and "hub_token" not in text


def test_the_resolved_recipe_holds_our_fields_and_those_of_transformers_that_were_set(write):
    content = yaml.safe_load(load_recipe(write("seed: 7\n")).to_yaml())
    for group in (ModelArguments, DataArguments, ViewArguments, SSLTrainingArguments):
        assert set(group.__annotations__) <= set(content)
    ours = {key for group in GROUPS.values() for key in group.__annotations__}
    assert set(content) - ours == {"seed"}


def test_field_names_are_unique_over_the_groups():
    names = [key for group in GROUPS.values() for key in group.__dataclass_fields__]
    assert len(names) == len(set(names))


def test_describe_fields_lists_help_and_default_by_group_and_only_names_the_inherited():
    text = describe_fields()
    assert "--resolution_step              Stages are multiples of this many pixels. [32]" in text
    assert "--blur_p" in text and "--learning_rate" in text and "--adam_beta1" not in text
    assert [text.index(f"\n{name}: ") for name in ("data", "views", "training")] == sorted(
        text.index(f"\n{name}: ") for name in ("data", "views", "training")
    )
    closing = text.split("\n\n")[-1]
    assert "huggingface.co/docs/transformers" in closing and "adam_beta1" in closing
    refused = closing.partition("Refused")[2]
    assert "hub_token" in refused and "lr_scheduler_type" in refused


def test_a_path_inside_a_mapping_is_not_shown(write):
    """The command and the recipe of a card, and what tracker callbacks read."""
    weights = "{checkpoint_path: /secret/folder/x.pth, drop_path_rate: 0.1}"
    for words in (["--backbone_args", weights], [f"--backbone_args={weights}"]):
        recipe = load_recipe(write("method: simsiam\n"), words)
        shown = [recipe.command(), recipe.redacted().to_yaml(), recipe.model.to_json_string()]
        assert all("secret" not in text and "x.pth" in text and "0.1" in text for text in shown)
        assert recipe.model.backbone_args["checkpoint_path"] == "/secret/folder/x.pth"  # what trains
