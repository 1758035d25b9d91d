"""Distillation from a teacher that sees each whole image once, against features and passes by hand."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import v2
from transformers import TrainerCallback

from hf_essl.config import DataArguments, SSLTrainingArguments, ViewArguments
from hf_essl.cost import FlopCounter
from hf_essl.data import StreamedImages
from hf_essl.evaluation.image_targets import check_image_teacher
from hf_essl.lr_finder import lr_range_test
from hf_essl.methods import SSLModel
from hf_essl.pretrain import plain_step_seconds
from hf_essl.recipe import Recipe
from hf_essl.trainer import SSLTrainer
from tests.helpers import TRAINING, VIEWS, patches
from tests.test_trainer import whole_and_resumed

TEACHER = {"teacher": "test_vit", "teacher_pretrained": False, "teacher_resolution": 64, "projector_hidden": 32}


def trainer(output_dir, views=None, callbacks=None, sees="images", train=None, **training):
    """12 steps over 96 patches; the teacher sees them at 64 px."""
    torch.manual_seed(0)
    args = ViewArguments(**{**VIEWS, **(views or {})})
    settings = {"method_args": {**TEACHER, "teacher_sees": sees}, "resolutions": args.resolutions}
    return SSLTrainer(
        SSLModel.from_timm("test_resnet", "distill", **settings),
        SSLTrainingArguments(output_dir=str(output_dir), **{**TRAINING, **training}),
        patches("train", 96) if train is None else train,
        patches("validation", 32),
        view_args=args,
        data_args=DataArguments(image_size=32),
        callbacks=callbacks,
    )


def passes_of(model):
    """How many images each pass of the teacher sees, as it goes on."""
    seen = []
    model.teacher.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    return seen


def test_the_targets_of_all_views_are_the_features_of_the_whole_image(tmp_path):
    """torchvision resizes and crops the images, and the teacher normalizes them with its own statistics."""
    run = trainer(tmp_path, eval_crop_pct=1.0)
    model, images = run.model.train(), patches("train", 96)
    run.image_targets.fill(model, images, run.accelerator)
    batch = run.feed(images.__getitems__([7, 3, 90, 41]))
    crop = v2.Compose([v2.Resize(64, antialias=True), v2.CenterCrop(64)])
    pixels = crop(images.gather(torch.tensor([7, 3, 90, 41])).float() / 255)
    own = model.teacher.backbone.pretrained_cfg
    with torch.no_grad():
        normal = (pixels - torch.tensor(own["mean"]).view(3, 1, 1)) / torch.tensor(own["std"]).view(3, 1, 1)
        expected = model.teacher.backbone(normal)
    first, second = torch.rand(2, 4, 3, 32, 32)
    with run.show_images(batch):
        losses = model(first, second)["loss"]
    assert model.image_targets is None
    projected = [model.projector(model.backbone(view)) for view in (first, second)]
    by_hand = sum(1 - F.cosine_similarity(z, expected) for z in projected) / 2
    torch.testing.assert_close(losses, by_hand, atol=1e-4, rtol=0)


def test_the_teacher_sees_each_image_once_and_the_ledger_counts_it_once(tmp_path):
    run = trainer(tmp_path, views={"selection": "none", "num_views": 2})
    seen = passes_of(run.model)
    run.train()
    assert sum(seen) == 96
    predicted = run.predicted_cost()
    assert predicted.counted_petaflops == pytest.approx(run.state.total_flos / 1e15)
    teacher = 96 * FlopCounter.of(run.model, run.views.args).whole_image() / 1e15
    assert predicted.counted_teacher_petaflops == pytest.approx(teacher)
    each = SSLModel.from_timm("test_resnet", "distill", method_args=TEACHER, resolutions=(32,))
    passes_of_a_step = FlopCounter.of(each, run.views.args).step(32).teacher  # two views of an image
    assert teacher == pytest.approx(96 * passes_of_a_step / 2 / 1e15)


def test_both_speedups_count_the_teacher_on_both_sides(tmp_path):
    """The plain recipe has the same teacher: without a curriculum and a selection there is nothing to gain."""
    run = trainer(tmp_path, views={"selection": "none", "num_views": 2, "resolution_schedule": "constant"})
    run.train()
    assert run.predicted_cost().counted_speedup == pytest.approx(1)
    recipe = Recipe.of(run.model.config, run.data_args, run.views.args, run.args, "patches")
    steps = run.clock.seconds - run.image_targets.seconds
    metrics, _ = run.report(recipe, plain_step_seconds=steps / run.state.global_step)
    assert 0 < run.image_targets.seconds < run.clock.seconds
    assert metrics["measured_speedup"] == pytest.approx(1)


def test_hard_augment_needs_no_pass_of_the_teacher(tmp_path):
    """It compares three views of each image; only the pictures before the first step need passes of their own."""
    seen, at_steps = [], []

    class Note(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            at_steps.append(sum(seen))

    run = trainer(tmp_path, max_steps=3, callbacks=[Note()])
    seen = passes_of(run.model)
    run.train()
    assert len(at_steps) == 3 and {*at_steps, sum(seen)} == {at_steps[0]} and at_steps[0] >= 96


@pytest.mark.slow
def test_resumed_equals_never_interrupted_bit_for_bit(tmp_path):
    whole, resumed = whole_and_resumed(tmp_path, trainer, 5)
    assert resumed.state.global_step == whole.state.global_step == 12
    state = resumed.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.model.state_dict().items())
    assert resumed.state.total_flos == whole.state.total_flos


def test_a_finished_run_that_is_resumed_shows_nothing_to_the_teacher(tmp_path):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path, **settings)
    whole.train()
    again = trainer(tmp_path, **settings)
    seen = passes_of(again.model)
    again.train(resume_from_checkpoint=True)
    assert again.is_finished and not seen
    assert again.state.total_flos == whole.state.total_flos
    assert plain_step_seconds(again, warmup=1, steps=1) > 0


def test_a_range_test_shows_the_images_too(tmp_path):
    found = lr_range_test(trainer(tmp_path), steps=10, validation_images=16)
    assert len(found.train_losses) == len(found.validation_losses) == 10


def test_what_cannot_be_is_one_line(tmp_path):
    arguments = {**TEACHER, "teacher_sees": "images", "teacher_resolution": "view"}
    with pytest.raises(ValueError, match="teacher_resolution is view, but with teacher_sees: images"):
        SSLModel.from_timm("test_resnet", "distill", method_args=arguments)
    with pytest.raises(ValueError, match="teacher_sees is 'canvas'"):
        SSLModel.from_timm("test_resnet", "distill", method_args={**TEACHER, "teacher_sees": "canvas"})
    model = SSLModel.from_timm("test_resnet", "distill", method_args={**TEACHER, "teacher_sees": "images"})
    with pytest.raises(ValueError, match="teacher_sees is images with a stream"):
        check_image_teacher(model, object.__new__(StreamedImages), ViewArguments())
    with pytest.raises(ValueError, match="selection_score is projection_cosine with teacher_sees: images"):
        trainer(tmp_path, views={"selection_score": "projection_cosine"})
    with pytest.raises(ValueError, match="extra_targets is true with teacher_sees: images"):
        trainer(tmp_path, views={"selection": "random", "extra_targets": True})
    with pytest.raises(RuntimeError, match="features of these images are not known"):
        model(*torch.rand(2, 2, 3, 32, 32))
