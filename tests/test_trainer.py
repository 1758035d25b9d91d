"""The trainer: exact resume, one writer of each quantity, what it logs, and what it must leave alone."""

import logging
import math

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from hf_essl.common import Diverged
from hf_essl.data import NO_LABEL, CachedImages, collate
from hf_essl.methods import METHODS
from hf_essl.run_folder import last_complete_checkpoint
from tests.helpers import patches, small_trainer


class StopAfter(TrainerCallback):
    """Saves and stops after a step, as an interruption does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def whole_and_resumed(folder, build, stop, **settings):
    """A run that was never interrupted, and one that was stopped after a step and resumed, both at their end."""
    whole = build(folder / "whole", **settings)
    whole.train()
    build(folder / "cut", callbacks=[StopAfter(stop)], **settings).train()
    resumed = build(folder / "cut", **settings)
    torch.manual_seed(1234)
    resumed.train(resume_from_checkpoint=True)
    return whole, resumed


class Uncached(torch.utils.data.Dataset):
    """Patches as a user's own dataset hands them over, decoded one by one and in workers."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]["image"], self.images[index]["label"]


def curriculum(trainer):
    keys = ("loss", "learning_rate", "momentum", "resolution", "magnitude")
    return [[entry[key] for key in keys] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("stop", "workers"), [(8, 0), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 0), (6, 0), (8, 2)))]
)
def test_resumed_equals_never_interrupted_bit_for_bit(tmp_path, stop, workers):
    images = Uncached(patches("train", 96))
    whole = small_trainer(tmp_path / "whole", train=images, dataloader_num_workers=workers)
    whole.train()
    cut = small_trainer(tmp_path / "cut", train=images, dataloader_num_workers=workers, callbacks=[StopAfter(stop)])
    cut.train()
    assert cut.state.global_step == stop

    resumed = small_trainer(tmp_path / "cut", train=images, dataloader_num_workers=workers)
    torch.manual_seed(1234)  # whatever the new process drew before
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 12
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for ours, theirs in zip(resumed.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        assert torch.equal(ours["momentum_buffer"], theirs["momentum_buffer"])
    assert curriculum(resumed) == curriculum(whole)
    assert resumed.state.total_flos == whole.state.total_flos


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_bit_for_bit(tmp_path, method):
    """Weights, teacher, queue and its pointer, center, and so the losses; tau and temperature follow the step."""
    settings = {"method": method, "learning_rate": 0.005, "num_train_epochs": 3, "warmup_epochs": 1}
    whole, resumed = whole_and_resumed(tmp_path, small_trainer, 10, **settings)
    assert resumed.state.global_step == whole.state.global_step == 18
    state = resumed.model.state_dict()
    assert state.keys() == whole.model.state_dict().keys()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert curriculum(resumed) == curriculum(whole)
    for attribute in ("momentum", "temperature"):
        assert getattr(resumed.model, attribute, None) == getattr(whole.model, attribute, None)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simsiam", "mocov2"])
def test_resumed_with_gradient_accumulation(tmp_path, method):
    settings = {"method": method, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    whole = small_trainer(tmp_path / "whole", **settings)
    whole.train()
    small_trainer(tmp_path / "cut", callbacks=[StopAfter(7)], **settings).train()
    resumed = small_trainer(tmp_path / "cut", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 12
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


def test_curriculum_and_schedule_of_a_run_by_hand(tmp_path):
    """12 steps, 3 of warm-up at 32 px, then 16, 24 and 32 px for 3 steps each; LR and momentum of Eq. 8."""
    trainer = small_trainer(tmp_path)
    trainer.train()
    rows = curriculum(trainer)
    assert [row[3] for row in rows] == [32] * 3 + [16] * 3 + [24] * 3 + [32] * 3
    assert [row[4] for row in rows] == pytest.approx([4 + 2 * step / 12 for step in range(12)])
    rates, momenta = [row[1] for row in rows], [row[2] for row in rows]
    assert rates[:4] == pytest.approx([0, 0.025, 0.075, 0.1])  # (1 - cos(pi t / 3)) / 2 of the peak
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert momenta[0] == pytest.approx(0.95) and momenta[3] == pytest.approx(0.85)
    assert momenta[3:] == sorted(momenta[3:])


def test_the_predictors_learning_rate_is_held_where_asked(tmp_path):
    for fixed, expected in ((True, 0.1), (False, 0.0)):
        trainer = small_trainer(tmp_path / str(fixed), fix_predictor_lr=fixed, num_train_epochs=1, warmup_epochs=0.25)
        trainer.train()
        predictor = {id(p) for p in trainer.model.predictor.parameters()}
        rates = {
            group["lr"] for group in trainer.optimizer.param_groups if {id(p) for p in group["params"]} & predictor
        }
        assert list(rates) == pytest.approx([expected], abs=1e-9)


def test_weight_decay_is_on_every_parameter_and_momentum_is_sgds(tmp_path):
    trainer = small_trainer(tmp_path, weight_decay=0.01)
    optimizer = trainer.create_optimizer()
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(list(trainer.model.parameters()))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01}
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    assert isinstance(optimizer, torch.optim.SGD)


def test_what_is_logged(tmp_path):
    trainer = small_trainer(tmp_path, knn_every_epochs=1)
    trainer.train()
    evaluations = [e["step"] for e in trainer.state.log_history if "eval_knn_accuracy" in e]
    assert evaluations == [0, 6, 12]  # the random initialization, each epoch, the end once
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert last["petaflops"] * 1e15 == pytest.approx(trainer.state.total_flos)
    assert 0 < last["embedding_std"] < 2 / math.sqrt(32)
    assert last["selection_gap"] > 0 and 0 < last["selection_cost_percent"] < 100
    assert last["images_per_second"] > 0 and last["train_seconds"] > 0


def test_petaflops_are_those_of_the_schedule(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train()
    per_step = [16 * trainer.flop_counter.step(r).total for r in (32, 16, 24, 32)]
    assert trainer.state.total_flos == pytest.approx(3 * sum(per_step))


def test_labels_never_reach_the_model(tmp_path):
    trainer = small_trainer(tmp_path, max_steps=1)
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((len(args), set(kwargs))), with_kwargs=True
    )
    trainer.train()
    assert seen == [(0, {"first", "second"})]
    assert "label" in collate([trainer.train_dataset[0]])  # they were there to be dropped


@pytest.mark.slow
def test_an_online_probe_learns_resumes_and_changes_nothing_of_the_run(tmp_path):
    plain, whole = small_trainer(tmp_path / "plain"), small_trainer(tmp_path / "whole", online_probe=True)
    for trainer in (plain, whole):
        trainer.train()
    small_trainer(tmp_path / "cut", online_probe=True, callbacks=[StopAfter(5)]).train()
    resumed = small_trainer(tmp_path / "cut", online_probe=True)
    resumed.train(resume_from_checkpoint=True)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name
    torch.testing.assert_close(resumed.online_probe.state_dict(), whole.online_probe.state_dict(), rtol=0, atol=0)
    probed = [entry for entry in whole.state.log_history if "eval_probe_accuracy" in entry]
    features, labels = whole.features(whole.eval_dataset)
    known = whole.train_dataset.labels.unique()  # the scores are those of the classes that occur
    by_hand = (known[whole.online_probe(features).argmax(dim=1)] == labels).float().mean().item()
    assert len(probed) == 2 and probed[-1]["eval_probe_accuracy"] == pytest.approx(100 * by_hand)
    losses = [entry["probe_loss"] for entry in whole.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(len(known)), abs=1e-4) and losses[-1] < losses[0]


def test_an_online_probe_without_labels_is_an_error(tmp_path):
    images = CachedImages(patches("train", 32).images, None, None, "heap")
    with pytest.raises(ValueError, match="online_probe is on, but the training images of heap have no labels"):
        small_trainer(tmp_path, train=images, online_probe=True)


def test_evaluation_changes_nothing_of_the_run(tmp_path):
    plain, evaluated = small_trainer(tmp_path / "a"), small_trainer(tmp_path / "b", knn_every_epochs=1)
    for trainer in (plain, evaluated):
        trainer.train()
    assert all(torch.equal(v, evaluated.model.state_dict()[k]) for k, v in plain.model.state_dict().items())


def test_views_are_made_outside_autocast_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_essl.config.training.cpu_has_bf16", lambda: True)
    trainer = small_trainer(tmp_path, bf16=True)
    trainer.create_optimizer()
    images = patches("train", 4).images
    views = trainer.render(images, trainer.choose_pair(images))
    assert {name: view.dtype for name, view in views.items()} == dict.fromkeys(("first", "second"), torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("selection", ["hard", "random"])
def test_extra_targets_reach_the_loss_and_resume(tmp_path, selection):
    settings = {"views": {"selection": selection, "num_views": 4, "extra_targets": True}, "max_steps": 6}
    whole = small_trainer(tmp_path / "whole", **settings)
    seen = []
    whole.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["extra"]), with_kwargs=True)
    whole.train()
    assert {tuple(extra.shape) for extra in seen} == {(16, 2, 32)} and not any(e.requires_grad for e in seen)
    small_trainer(tmp_path / "cut", callbacks=[StopAfter(4)], **settings).train()
    resumed = small_trainer(tmp_path / "cut", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in whole.model.state_dict().items())
    assert "selection_cost_percent" in whole.state.log_history[1] or selection == "random"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simsiam", "dino"])
def test_the_backbone_alone_is_compiled(tmp_path, method):
    """By the cheapest backend: the graphs are traced, one a resolution, and run eagerly; the weights agree."""
    plain = small_trainer(tmp_path / "plain", method=method, max_steps=6, learning_rate=0.005)
    compiled = small_trainer(
        tmp_path / "compiled", method=method, max_steps=6, learning_rate=0.005, torch_compile_backend="eager"
    )
    for trainer in (plain, compiled):
        trainer.train()
    backbone, teacher = compiled.model.backbone, getattr(compiled.model, "teacher", None)
    assert backbone._compiled_call_impl is not None and compiled.model._compiled_call_impl is None
    assert teacher is None or teacher.backbone._compiled_call_impl is not None
    assert compiled.model_wrapped is compiled.model  # nothing is wrapped around it
    state = compiled.model.state_dict()
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(state[name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simsiam", "byol"])
def test_everything_is_compiled_before_the_clock_runs_and_nothing_is_left_of_it(tmp_path, method):
    torch.compiler.reset()  # what other tests have compiled would not be compiled again
    graphs, states = [], []

    class Count(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            graphs.append(counters["stats"]["unique_graphs"])
            states.append({name: value.clone() for name, value in model.state_dict().items()})

    options = {"max_steps": 8, "views": {"resolution_step": 16}, "torch_compile_backend": "eager"}
    trainer = small_trainer(tmp_path, method=method, callbacks=[Count()], **options)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    at_first = counters["stats"]["unique_graphs"]
    trainer.train()
    assert trainer.views.resolution == 32 and len(graphs) == 8  # it went from 32 px to 16 and back
    assert graphs[0] > at_first and len(set(graphs)) == 1
    assert all(torch.equal(value, states[0][name]) for name, value in before.items())


def test_channels_last_weights_can_be_saved(tmp_path):
    trainer = small_trainer(tmp_path, channels_last=True)
    assert trainer.model.backbone.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert set(saved) == set(trainer.model.state_dict())


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    small_trainer(tmp_path, save_strategy="steps", save_steps=4).train()
    assert last_complete_checkpoint(tmp_path).endswith("checkpoint-12")
    (tmp_path / "checkpoint-12" / "trainer_state.json").write_text('{"global_')
    assert last_complete_checkpoint(tmp_path).endswith("checkpoint-8")
    with pytest.raises(ValueError, match=r"no complete checkpoint in .*none"):
        last_complete_checkpoint(tmp_path / "none")


def test_fewer_images_than_a_batch_are_told(tmp_path):
    trainer = small_trainer(tmp_path, per_device_train_batch_size=128)
    with pytest.raises(ValueError, match="96 training images do not fill a batch of 128"):
        trainer.train()


def test_a_single_evaluation_image_is_told_before_the_run(tmp_path):
    trainer = small_trainer(tmp_path, held=patches("validation", 1))
    with pytest.raises(ValueError, match="there is 1 image to evaluate on, and its statistics need 2; raise max_eval"):
        trainer.train()
    assert trainer.state.global_step == 0 and trainer.state.log_history == []


@pytest.mark.parametrize("images, batch", [(65, 64), (33, 16), (1, 16)])
def test_a_last_batch_of_one_image_is_refused_before_the_run(tmp_path, images, batch):
    options = {"per_device_train_batch_size": batch, "dataloader_drop_last": False}
    trainer = small_trainer(tmp_path, train=patches("train", images), **options)
    message = f"{images} training images in batches of {batch} leave a last batch of one image, which BatchNorm"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert trainer.state.global_step == 0


def test_more_neighbors_than_labeled_images_are_refused_before_the_run(tmp_path):
    train = patches("train", 32)
    train.labels[10:] = NO_LABEL
    trainer = small_trainer(tmp_path, train=train, knn_k=11)
    with pytest.raises(ValueError, match="knn_k is 11, but only 10 training images can vote; set knn_k: 10 or lower"):
        trainer.train()
    with pytest.raises(ValueError, match="knn_k is 97, but only 96 training images can vote"):
        small_trainer(tmp_path / "all", knn_k=97).train()


def test_partly_labeled_images_train_and_evaluate(tmp_path):
    train, held = patches("train", 96), patches("validation", 32)
    train.labels[::3], held.labels[::2] = NO_LABEL, NO_LABEL
    trainer = small_trainer(tmp_path, train=train, held=held, max_steps=2, online_probe=True)
    trainer.train()
    found = trainer.evaluate()
    assert {"eval_knn_accuracy", "eval_probe_accuracy", "eval_rankme"} <= set(found)


def test_a_queue_as_long_as_the_data_is_told(tmp_path):
    trainer = small_trainer(tmp_path, method="mocov2", train=patches("train", 48))
    with pytest.raises(ValueError, match="queue_length is 40, too long for 48 images in batches of 16"):
        trainer.train()


def test_unreadable_images_stop_the_run_past_their_share(tmp_path):
    class Torn(Uncached):
        def __getitem__(self, index):
            if index % 4 == 0:
                raise OSError("truncated file")
            return super().__getitem__(index)

    trainer = small_trainer(tmp_path, train=Torn(patches("train", 96)))
    with pytest.raises(ValueError, match=r"of 96 images are unreadable .*above max_unreadable 0.01"):
        trainer.train()


def test_another_evaluation_set_may_be_any_source(tmp_path):
    trainer = small_trainer(tmp_path)
    held = patches("validation", 32)
    own = trainer.evaluate()
    given = trainer.evaluate(Uncached(held), metric_key_prefix="other")
    assert given["other_knn_accuracy"] == pytest.approx(own["eval_knn_accuracy"])


@pytest.mark.slow
def test_a_stream_trains_and_resumes_bit_for_bit(tmp_path):
    pictures = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in patches("train", 48).images]
    rows = datasets.Dataset.from_dict({"image": pictures}, features=datasets.Features({"image": datasets.Image()}))

    def run(folder, resume=None, **settings):
        trainer = small_trainer(folder, train=rows.to_iterable_dataset(num_shards=2), max_steps=6, **settings)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "cut", callbacks=[StopAfter(4)]).state.global_step == 4
    resumed = run(tmp_path / "cut", resume=True)
    assert resumed.state.global_step == 6
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


class Spoil(TrainerCallback):
    """Makes the weights infinite after the last step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == state.max_steps:
            next(model.backbone.parameters()).data.fill_(torch.inf)


def test_weights_that_end_infinite_are_a_lost_run(tmp_path):
    trainer = small_trainer(tmp_path, max_steps=3, callbacks=[Spoil()], knn_every_epochs=0)
    with pytest.raises(Diverged, match="weights are not finite after step 3; nothing is exported"):
        trainer.train()
    assert not (tmp_path / "backbone").exists() and not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("count", [1, 8])
def test_a_batch_of_one_image_is_told_before_the_run(count, tmp_path):
    images = patches("train", 12).take(range(count))
    trainer = small_trainer(tmp_path, train=images, per_device_train_batch_size=1, knn_k=1, warmup_epochs=0.1)
    with pytest.raises(ValueError, match="per_device_train_batch_size is 1, and BatchNorm cannot normalize one image"):
        trainer.train()


MULTI_CROP = {"local_views": 2, "local_resolution": 16}
DINO = {"optim": "adamw_torch", "decay_norm_and_bias": False, "weight_decay": 0.04, "weight_decay_end": 0.4}


@pytest.mark.slow
def test_a_resumed_run_with_local_views_and_a_scheduled_decay_is_the_same_bit_for_bit(tmp_path):
    """Killed at step 5 of 12, in a stage at 16 px with local views of 8 px."""
    settings = {"method": "dino", "views": MULTI_CROP, "learning_rate": 1e-3, "max_grad_norm": 3.0, **DINO}
    settings["clip_each_parameter"] = True
    whole = small_trainer(tmp_path / "whole", **settings)
    sizes = set()
    whole.model.backbone.register_forward_pre_hook(lambda _, inputs: sizes.add(tuple(inputs[0].shape[::3])))
    whole.train()
    assert sizes >= {(16, 16), (16, 24), (16, 32), (32, 8), (32, 12), (32, 16)}, "batch and side; 2 x 16 local views"
    small_trainer(tmp_path / "cut", callbacks=[StopAfter(5)], **settings).train()
    resumed = small_trainer(tmp_path / "cut", **settings)
    torch.manual_seed(1234)
    resumed.train(resume_from_checkpoint=True)
    state = resumed.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.model.state_dict().items())
    for ours, theirs in zip(resumed.optimizer.param_groups, whole.optimizer.param_groups, strict=True):
        assert ours["weight_decay"] == theirs["weight_decay"]
    decayed, undecayed = (group["weight_decay"] for group in whole.optimizer.param_groups)
    assert (decayed, undecayed) == (pytest.approx(0.4), 0.0)
    assert resumed.state.total_flos == whole.state.total_flos
    assert any("loss_local_views" in entry for entry in whole.state.log_history)


def test_another_final_decay_acts_from_the_resumed_step_on(tmp_path):
    settings = {"learning_rate": 1e-3, "max_steps": 4, "warmup_epochs": 0.5, **DINO}
    small_trainer(tmp_path, callbacks=[StopAfter(2)], **settings).train()
    resumed, used = small_trainer(tmp_path, **{**settings, "weight_decay_end": 0.84}), []
    resumed.add_callback(Decays(used))
    resumed.train(resume_from_checkpoint=True)
    assert used == pytest.approx([0.44, 0.44 + 0.4 * 2**-0.5])  # 0.44 - 0.4 cos(k pi / 4) for k = 2 and 3
    logged = [entry["weight_decay"] for entry in resumed.state.log_history if "loss" in entry]
    assert logged == pytest.approx([0.04, 0.22 - 0.18 * 2**-0.5, *used]), "to 0.4 before the resume"


def test_each_gradient_is_clipped_by_its_own_norm(tmp_path):
    """As DINO's code does it: g · min(1, c / (|g| + 1e-6)) for each parameter, after all passes of a step."""
    limit, found = 0.02, {}
    for name, options in (("free", {}), ("clipped", {"max_grad_norm": limit, "clip_each_parameter": True})):
        gradients = found.setdefault(name, {})
        trainer = small_trainer(tmp_path / name, max_steps=1, gradient_accumulation_steps=2, **options)
        trainer.add_callback(Gradients(trainer.model, gradients))
        trainer.train()
        norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
        gradients["norm"] = torch.tensor(norms[0])
    clipped = 0
    for name, gradient in found["free"].items():
        own = gradient.norm().item()
        expected = gradient if name == "norm" else gradient * min(1.0, limit / (own + 1e-6))
        torch.testing.assert_close(found["clipped"][name], expected, rtol=1e-5, atol=1e-8)
        clipped += name != "norm" and own > limit
    assert 3 < clipped < len(found["free"]) - 3, "some are above the limit, some below it"


class Gradients(TrainerCallback):
    """Notes the gradients that the first step uses."""

    def __init__(self, model, found):
        self.model, self.found = model, found

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.found |= {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


class Decays(TrainerCallback):
    """Notes the weight decay that each step uses."""

    def __init__(self, used):
        self.used = used

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.used.append(optimizer.param_groups[0]["weight_decay"])


def test_a_resume_does_not_warn_of_intervals_that_nobody_changed(tmp_path):
    """A short run logs more often than `logging_steps` asks; transformers compares the interval in the checkpoint."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    try:
        settings = {"logging_steps": 50, "save_strategy": "steps", "save_steps": 3}
        small_trainer(tmp_path, max_steps=3, **settings).train()
        resumed = small_trainer(tmp_path, max_steps=6, **settings)
        resumed.train(resume_from_checkpoint=True)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert not [line for line in lines if "do not match" in line]
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == [1, 2, 3, 4, 5, 6]
