"""Backbones from elsewhere: trained, interrupted, resumed bit for bit, exported and loaded again."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    ConvNextConfig,
    Dinov2Config,
    ResNetConfig,
    TrainerCallback,
    ViTConfig,
)

from hf_essl import SSLModel, SSLTrainer, SSLTrainingArguments, ViewArguments, cli, export_backbone, load_backbone
from hf_essl.config import DataArguments
from hf_essl.methods.backbone import check_backbone, feature_size
from hf_essl.recipe import RecipeError, load_recipe
from tests.helpers import TRAINING, VIEWS, patches

ROOT = Path(__file__).parents[2]
CONFIGS = {
    "resnet": lambda: ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"),
    "vit": lambda: ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    ),
    "dinov2": lambda: Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    ),
    "convnext": lambda: ConvNextConfig(hidden_sizes=[16, 24], depths=[1, 1], num_stages=2, patch_size=4),
}
FOREIGN = ["module", "transformers-resnet", "transformers-vit", "torchvision", "exported"]


class Net(nn.Module):
    """A network of one's own, B x 3 x r x r to B x 24."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 24, 3, stride=2, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, images):
        return self.layers(images).flatten(1)


def configuration(kind, folder):
    """A folder with the configuration of a tiny transformers model."""
    CONFIGS[kind]().save_pretrained(folder)
    return folder


def build(kind, folder):
    """A model on a foreign backbone with equal weights each time; `folder` holds its configuration or its export."""
    torch.manual_seed(0)
    sizes, heads = ViewArguments(**VIEWS).resolutions, {"projector_dim": 32, "predictor_hidden": 16}
    if kind == "module":
        return SSLModel.from_module(Net(), method_args=heads, resolutions=sizes)
    name = "torchvision:shufflenet_v2_x0_5" if kind == "torchvision" else str(folder)
    if kind.startswith("transformers"):
        name = f"transformers:{folder}"
    return SSLModel.from_timm(name, method_args=heads, resolutions=sizes, pretrained=kind == "exported")


def prepare(kind, folder):
    if kind.startswith("transformers"):
        configuration(kind.removeprefix("transformers-"), folder)
    if kind == "exported":
        export_backbone(SSLModel.from_timm("test_resnet"), folder, input_size=32)


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def trainer(kind, folder, run, kill=None):
    args = SSLTrainingArguments(
        str(run), **{**TRAINING, "max_steps": 20, "save_strategy": "steps", "save_steps": 8, "logging_steps": 5}
    )
    return SSLTrainer(
        build(kind, folder),
        args,
        patches("train", 96),
        patches("validation", 32),
        view_args=ViewArguments(**VIEWS),
        data_args=DataArguments(image_size=32),
        callbacks=[KillAt(kill)] if kill else [],
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", FOREIGN)
def test_trained_killed_resumed_exported_and_loaded(kind, tmp_path):
    folder, whole, cut = tmp_path / "source", tmp_path / "whole", tmp_path / "cut"
    prepare(kind, folder)
    trainer(kind, folder, whole).train()
    code = (
        "from pathlib import Path; import torch; torch.set_num_threads(1); "  # as in conftest: sums depend on it
        "from tests.methods.test_foreign import trainer; "
        f"trainer({kind!r}, Path({str(folder)!r}), {str(cut)!r}, kill=11).train()"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    resumed = trainer(kind, folder, cut)
    resumed.train(resume_from_checkpoint=True)
    ours, theirs = (load_file(run / "checkpoint-20" / "model.safetensors") for run in (cut, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    exported, own = resumed.export_backbone(tmp_path / "out"), Net() if kind == "module" else None
    loaded = load_backbone(exported, backbone=own)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    from_run = load_backbone(cut, backbone=Net() if kind == "module" else resumed.model.config.backbone)
    with torch.no_grad():
        expected = resumed.model.backbone.eval().double()(images)
        for again in (loaded, from_run):
            torch.testing.assert_close(again.backbone.double()(images), expected, atol=1e-6, rtol=0)
    assert (loaded.resolution, loaded.crop_pct) == (32, 0.875)
    assert loaded.mean == pytest.approx(resumed.model.pixel_mean)


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_exported_transformers_backbone_loads_in_auto_model(kind, tmp_path):
    source = configuration(kind, tmp_path / "source")
    model = SSLModel.from_timm(f"transformers:{source}", resolutions=(32,)).eval()
    folder = export_backbone(model, tmp_path / "out", input_size=32, crop_pct=0.8)
    again = AutoModel.from_pretrained(folder).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = again(pixel_values=images)
        torch.testing.assert_close(output.pooler_output.flatten(1), model.backbone(images), atol=1e-6, rtol=0)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert processor.size["shortest_edge"] == 40 and processor.crop_size["height"] == 32
    loaded = load_backbone(folder)
    assert (loaded.resolution, loaded.crop_pct) == (32, 0.8)
    assert loaded.backbone(images).shape == (2, feature_size(model.backbone))


def test_the_preprocessing_of_an_exported_transformers_backbone_is_loaded_as_it_is(tmp_path):
    model = SSLModel.from_timm(f"transformers:{configuration('resnet', tmp_path / 'source')}", resolutions=(32,))
    folder = export_backbone(model, tmp_path / "out", input_size=32)
    picture = torchvision.transforms.functional.to_pil_image(torch.rand(3, 50, 70))
    pixels = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(load_backbone(folder).preprocess([picture]), pixels, atol=0.1, rtol=0)


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("mobilenet_v3_small", 1024), ("vit_b_16", 768)])
def test_torchvision_networks_lose_the_last_layer_alone(name, width):
    model = SSLModel.from_timm(f"torchvision:{name}", resolutions=(224,))
    assert model.num_features == width
    whole = torchvision.models.get_model(name)
    removed = sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in model.backbone.parameters())
    assert removed == 1000 * width + 1000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet1O1", "not a model of torchvision; did you mean resnet101"),
        ("transformers:/no/such/folder", "contains no config.json"),
        ("torchvision:squeezenet1_0", "does not end with a linear layer"),
        ("torchvision:vit_b_32", "does not accept the resolutions"),
        ("module:tests.Net", "was passed as an object"),
    ],
)
def test_what_cannot_work_is_one_line(name, message, tmp_path):
    recipe = load_recipe("quickstart", ["--backbone", name, "--use_cpu"])
    with pytest.raises((ValueError, RecipeError), match=message) as error:
        recipe.check_network()
    assert "\n" not in str(error.value)


def test_a_network_of_ones_own_is_exported_with_its_class(tmp_path, capsys):
    folder = export_backbone(SSLModel.from_module(Net()), tmp_path / "out", input_size=32)
    config = json.loads((folder / "config.json").read_text())
    assert (config["library"], config["num_features"]) == ("module", 24)
    with pytest.raises(ValueError, match=r"holds the weights of .*Net, a class of its author"):
        load_backbone(folder)
    with pytest.raises(ValueError, match="do not fit Linear"):
        load_backbone(folder, backbone=nn.Linear(1, 1))


def test_an_exported_folder_is_a_backbone_of_a_recipe(tmp_path):
    folder = export_backbone(SSLModel.from_timm("test_resnet"), tmp_path / "out", input_size=32)
    recipe = load_recipe("quickstart", ["--backbone", str(folder), "--pretrained", "--use_cpu"])
    recipe.check_network()
    model = recipe.build_model()
    expected = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in model.backbone.state_dict().items())
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"where no config.json is"):
        check_backbone(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resnet", "torchvision"])
def test_the_commands_train_evaluate_and_embed_them(kind, tmp_path, capsys):
    name = "torchvision:shufflenet_v2_x0_5"
    if kind != "torchvision":
        name = f"transformers:{configuration(kind, tmp_path / 'source')}"
    run = str(tmp_path / "run")
    words = f"--backbone {name} --max_train_samples 64 --max_eval_samples 32 --knn_k 3 --max_steps 2 --use_cpu".split()
    assert cli.main(["pretrain", "quickstart", *words, "--output_dir", run, "--measure_speedup", "false"]) == 0
    card = (tmp_path / "run" / "backbone" / "README.md").read_text()
    library = "torchvision" if kind == "torchvision" else "transformers"
    assert f"library_name: {library}" in card and str(tmp_path) not in card
    assert ("AutoModel.from_pretrained" in card) == (kind != "torchvision")
    data = ["--dataset", "photo-patches", "--max_train_samples", "32", "--max_eval_samples", "16"]
    assert cli.main(["evaluate", f"{run}/backbone", "--protocol", "knn", "--k", "3", *data]) == 0
