"""A run with a token curriculum: exact resume, who sees how many tokens, what it logs, and what is refused."""

import pytest
import torch

from hf_essl.config import DataArguments, SSLTrainingArguments, ViewArguments
from hf_essl.methods import METHODS, SSLModel
from hf_essl.recipe import load_recipe
from hf_essl.trainer import SSLTrainer
from tests.helpers import TRAINING, VIEWS, patches
from tests.test_trainer import whole_and_resumed

TOKENS = {"min_tokens": 0.25, "token_stages": 2, "selection_tokens": 0.5}
PATCH = {"patch_size": 4}


def trainer(output_dir, method="simsiam", views=None, callbacks=None, **training):
    """12 steps of a ViT with patches of 4 px, on views of 32, 16, 24 and 32 px."""
    torch.manual_seed(0)
    args = ViewArguments(**{**VIEWS, **TOKENS, **(views or {})})
    settings = {"method_args": METHODS[method].small_args, "backbone_args": PATCH, "resolutions": args.resolutions}
    return SSLTrainer(
        SSLModel.from_timm("test_vit", method, **settings),
        SSLTrainingArguments(output_dir=str(output_dir), **{**TRAINING, "learning_rate": 0.01, **training}),
        patches("train", 96),
        patches("validation", 32),
        view_args=args,
        data_args=DataArguments(image_size=32),
        callbacks=callbacks,
    )


def logged(run):
    keys = ("loss", "resolution", "magnitude", "tokens", "petaflops")
    return [[entry[key] for key in keys] for entry in run.state.log_history if "loss" in entry]


def seen_by(network, seen):
    """Notes the images, the patch tokens and whether gradients are recorded, of each pass of a ViT."""
    network.blocks[0].register_forward_pre_hook(
        lambda module, inputs: seen.append((len(inputs[0]), inputs[0].shape[1] - 1, torch.is_grad_enabled()))
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.slow
def test_resumed_equals_never_interrupted_bit_for_bit(tmp_path, checkpointing):
    settings = {"method": "byol", "views": {"teacher_tokens": 0.5}, "activation_checkpointing": checkpointing}
    whole, resumed = whole_and_resumed(tmp_path, trainer, 5, **settings)
    assert resumed.state.global_step == whole.state.global_step == 12
    state = resumed.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.model.state_dict().items())
    assert logged(resumed) == logged(whole)
    assert resumed.state.total_flos == whole.state.total_flos


def test_what_each_pass_of_a_run_sees_by_hand(tmp_path):
    """3 steps each at 32, 16, 24 and 32 px: 64, 16, 36 and 64 patches; a quarter of them for 6 steps, then all."""
    run = trainer(tmp_path, "byol")
    student, teacher = [], []
    seen_by(run.model.backbone, student)
    seen_by(run.model.teacher.backbone, teacher)
    run.train()
    training = [tokens for _, tokens, is_training in student if is_training]
    sizes = [(32, 0.25)] * 3 + [(16, 0.25)] * 3 + [(24, 1)] * 3 + [(32, 1)] * 3
    assert training == [count for count in [16] * 3 + [4] * 3 + [36] * 3 + [64] * 3 for _ in range(2)]
    assert [(entry[1], entry[3]) for entry in logged(run)] == sizes
    assert [tokens for _, tokens, _ in teacher] == [
        n for n in [64] * 3 + [16] * 3 + [36] * 3 + [64] * 3 for _ in (0, 1)
    ]
    passes = [(images, tokens) for images, tokens, is_training in student if not is_training]
    assert passes.count((16, 8)) == 12 * 3  # the selection: half of the 16 patches at 16 px, three views of 16 images
    assert {tokens for _, tokens in passes} == {8, 64}  # and the evaluations see all
    assert run.predicted_cost().counted_petaflops == pytest.approx(run.state.total_flos / 1e15)


@pytest.mark.slow
def test_shares_of_1_train_the_same_run_as_without_the_fields(tmp_path):
    plain, one = (trainer(tmp_path / str(share), views={**ALL, "token_stages": share}) for share in (2, 3))
    before = SSLModel.from_timm("test_vit", method_args=METHODS["simsiam"].small_args, backbone_args=PATCH)
    assert before.state_dict().keys() == plain.model.state_dict().keys()
    for run in (plain, one):
        run.train()
    assert all(torch.equal(v, one.model.state_dict()[k]) for k, v in plain.model.state_dict().items())
    assert not any("tokens" in entry for entry in one.state.log_history)


ALL = {"min_tokens": 1.0, "selection_tokens": 1.0}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--min_tokens", "0.5"], "min_tokens is 0.5, but ResNet cannot drop patch tokens"),
        (["--selection_tokens", "0.5"], "selection_tokens is 0.5, but ResNet cannot drop patch tokens"),
        (["--backbone", "convnext_atto", "--min_tokens", "0.5"], "but ConvNeXt cannot drop patch tokens"),
        (
            ["--min_tokens", "0.5", "--max_tokens", "0.25"],
            "min_tokens is 0.5, above max_tokens 0.25; lower it to that",
        ),
        (["--min_tokens", "0"], "min_tokens is 0.*greater than 0"),
        (["--token_stages", "1"], "token_stages is 1.*greater than or equal to 2"),
        (["--selection", "none", "--num_views", "2", "--selection_tokens", "0.5"], "which has no selection pass"),
        (
            ["--backbone", "test_vit", "--backbone_args", "{patch_size: 8}", "--teacher_tokens", "0.5"],
            "teacher_tokens is 0.5, but SimSiam has no momentum teacher; leave it out",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        load_recipe("quickstart", overrides).check_network()
    assert "\n" not in str(error.value)
