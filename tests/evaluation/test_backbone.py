"""Backbones loaded from every kind of source, compared with the weights that were saved there."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file

from hf_essl import export_backbone
from hf_essl.evaluation.backbone import find_backbone, load_backbone, run_recipe
from hf_essl.methods import METHODS, SSLModel
from hf_essl.methods.backbone import fingerprint

IMAGES = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def write_checkpoint(model, folder):
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    step = int(folder.name.partition("-")[2] or 1)
    state = {"global_step": step, "max_steps": 10, "log_history": []}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    for name in ("optimizer.pt", "scheduler.pt"):
        (folder / name).write_bytes(b"a pickle that nothing may open")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A BYOL run of two checkpoints and an exported backbone, each with other weights."""
    folder = tmp_path_factory.mktemp("runs") / "byol"
    torch.manual_seed(0)
    model = SSLModel.from_timm("test_resnet", "byol", method_args=METHODS["byol"].small_args)
    model.train()(torch.randn(8, 3, 48, 48), torch.randn(8, 3, 48, 48))  # its own BatchNorm statistics
    write_checkpoint(model, folder / "checkpoint-9")
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    write_checkpoint(model, folder / "checkpoint-10")
    recipe = "backbone: test_resnet\nbackbone_args: {}\nmethod: byol\nresolution: 48\nimage_size: 64\n"
    (folder / "recipe.yaml").write_text(recipe)
    with torch.no_grad():
        model.backbone.conv1[0].weight.mul_(2)
    export_backbone(model, folder / "backbone", input_size=64)
    return folder


def weights(folder, prefix):
    from safetensors.torch import load_file

    stored = load_file(folder / "model.safetensors")
    return {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}


def same(module, expected):
    state = module.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_run_loads_its_last_checkpoint_at_its_resolution(run):
    for source in (run, run / "checkpoint-10", str(run)):
        loaded = load_backbone(source)
        assert same(loaded.backbone, weights(run / "checkpoint-10", "backbone."))
        assert (loaded.resolution, loaded.mean, loaded.std) == (48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        assert not loaded.backbone.training and loaded.backbone(IMAGES).shape == (2, 96)
    assert same(load_backbone(run / "checkpoint-9").backbone, weights(run / "checkpoint-9", "backbone."))
    assert run_recipe(find_backbone(run))["image_size"] == 64


def test_the_teacher_is_another_backbone_if_there_is_one(run, tmp_path):
    teacher = load_backbone(run, which="teacher").backbone
    assert same(teacher, weights(run / "checkpoint-10", "teacher.backbone."))
    assert not same(teacher, weights(run / "checkpoint-10", "backbone."))
    model = SSLModel.from_timm("test_resnet", method_args=METHODS["simsiam"].small_args)
    write_checkpoint(model, tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match=r"which is teacher, but .* contains none; only byol, mocov2, dino have one"):
        load_backbone(tmp_path, which="teacher", backbone="test_resnet")
    with pytest.raises(ValueError, match=r"which is teacher, but .* is an exported backbone"):
        load_backbone(run / "backbone", which="teacher")
    with pytest.raises(ValueError, match="which is 'ema'; choose one of student, teacher"):
        load_backbone(run, which="ema")


def test_an_exported_backbone_at_its_input_size(run, tmp_path):
    loaded = load_backbone(run / "backbone")
    assert loaded.resolution == 64
    assert same(loaded.backbone, weights(run / "backbone", ""))
    shutil.copytree(run / "backbone", tmp_path / "done" / "backbone")
    assert same(load_backbone(tmp_path / "done").backbone, weights(run / "backbone", ""))  # no checkpoint was kept


def test_a_test_size_of_the_config_comes_first(run, tmp_path):
    folder = shutil.copytree(run / "backbone", tmp_path / "backbone")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"input_size"', '"test_input_size": [3, 80, 80], "input_size"'))
    assert load_backbone(folder).resolution == 80


def test_a_vision_transformer_at_any_resolution(tmp_path):
    torch.manual_seed(0)
    model = SSLModel.from_timm("test_vit", method_args=METHODS["simsiam"].small_args)
    folder = export_backbone(model, tmp_path / "vit", input_size=160)
    assert load_backbone(folder).resolution == 160
    loaded = load_backbone(folder, resolution=96)
    assert loaded.resolution == 96
    with torch.no_grad():
        torch.testing.assert_close(loaded.backbone(IMAGES), model.eval().backbone(IMAGES))
    with pytest.raises(ValueError, match="resolution is 100, which this VisionTransformer does not accept"):
        load_backbone(folder, resolution=100)


def test_images_are_prepared_as_the_evaluation_prepares_them(run, tmp_path):
    loaded = load_backbone(run / "backbone")  # at 64 px
    wide = torch.zeros(3, 64, 128, dtype=torch.uint8)
    wide[0, :, 32:96] = 255  # the center square is red
    picture = Image.fromarray(wide.permute(1, 2, 0).numpy())
    picture.save(tmp_path / "wide.png")
    pixels = loaded.preprocess([tmp_path / "wide.png", picture])
    red = (torch.tensor([1.0, 0.0, 0.0]) - torch.tensor(loaded.mean)) / torch.tensor(loaded.std)
    torch.testing.assert_close(pixels, red.view(1, 3, 1, 1).expand(2, 3, 64, 64))
    (tmp_path / "torn.png").write_bytes((tmp_path / "wide.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"image .*torn.png cannot be read: "):
        loaded.preprocess([tmp_path / "torn.png"])


def test_a_hub_id_from_the_cache(run):
    """The Hub's cache as the client lays it out; tests have no network."""
    cached = Path(constants.HF_HUB_CACHE) / "models--someone--small"
    shutil.copytree(run / "backbone", cached / "snapshots" / "abc", dirs_exist_ok=True)
    (cached / "refs").mkdir(exist_ok=True)
    (cached / "refs" / "main").write_text("abc")
    for source in ("someone/small", "hf-hub:someone/small", "hf_hub:someone/small@main"):
        loaded = load_backbone(source)
        assert loaded.resolution == 64 and same(loaded.backbone, weights(run / "backbone", ""))
    (cached / "snapshots" / "abc" / "model.safetensors").unlink()
    (cached / "snapshots" / "abc" / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match=r"someone/small on the Hub contains no model.safetensors"):
        load_backbone("someone/small")


def test_without_a_recipe_the_architecture_is_required(run, tmp_path):
    shutil.copytree(run / "checkpoint-9", tmp_path / "checkpoint-9")
    with pytest.raises(ValueError, match=r"contains no recipe.yaml with a backbone; pass backbone"):
        load_backbone(tmp_path)
    loaded = load_backbone(tmp_path, backbone="test_resnet")
    assert same(loaded.backbone, weights(run / "checkpoint-9", "backbone."))
    assert loaded.resolution == timm.create_model("test_resnet").pretrained_cfg["input_size"][-1]
    with pytest.raises(ValueError, match=r"the student's weights in .* do not fit test_vit"):
        load_backbone(tmp_path, backbone="test_vit")


def test_nothing_is_unpickled(run, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)
    for source in (run, run / "checkpoint-9", run / "backbone"):
        load_backbone(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("resnet50", "source is resnet50, which does not exist; give the folder of a run"),
        ("./no/where", "source is ./no/where, which does not exist"),
        ("runs/quickstrat", "source is runs/quickstrat, which is not a folder here and cannot be downloaded"),
    ],
)
def test_no_such_source(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_backbone(source)


def test_folders_without_a_backbone(run, tmp_path):
    with pytest.raises(ValueError, match=r"contains no model.safetensors, no complete checkpoint and no"):
        load_backbone(tmp_path)
    torn = shutil.copytree(run / "checkpoint-9", tmp_path / "byol" / "checkpoint-9")
    shutil.copy(run / "recipe.yaml", tmp_path / "byol")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read"):
        load_backbone(torn)
    save_file({"head.weight": torch.zeros(1)}, torn / "model.safetensors")
    with pytest.raises(ValueError, match=r"contains no backbone\.\* weights"):
        load_backbone(torn)
    torn = shutil.copytree(run / "backbone", tmp_path / "backbone")
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="do not fit test_resnet"):
        load_backbone(torn)
    (torn / "config.json").write_text('{"hidden": 3}')
    with pytest.raises(ValueError, match=r"config.json names no architecture"):
        load_backbone(torn)


def test_a_fingerprint_is_of_names_types_shapes_and_bytes_sorted_by_name():
    weights = {"b": torch.tensor(3), "a": torch.tensor([[1.0], [-2.0]])}
    text = b"a torch.float32 (2, 1)" + b"\0\0\x80?\0\0\0\xc0" + b"b torch.int64 ()" + b"\3" + 7 * b"\0"
    assert fingerprint(weights) == hashlib.sha256(text).hexdigest()


def test_a_fingerprint_does_not_depend_on_memory_layout():
    whole = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    strided = whole.t().contiguous().t()
    assert not strided.is_contiguous() and fingerprint({"w": strided}) == fingerprint({"w": whole})
    assert fingerprint({"w": whole.bfloat16()}) != fingerprint({"w": whole}) != fingerprint({"w": whole.view(6, 4)})
    whole[0, 0] += 1e-6
    assert fingerprint({"w": strided}) != fingerprint({"w": whole})


HOSTILE = [
    *("[]", "3", "{", "[" * 100_000, "{}", '{"library": 3}', '{"library": "torchvision"}', '{"model_type": "nope"}'),
    *('{"library": "hf_essl"}', '{"architecture": 3}', '{"architecture": "../x"}', '{"model_type": "resnet"}'),
    '{"library": "torchvision", "architecture": "resnet18", "arguments": 3}',
    '{"library": "hf_essl", "backbone": "test_resnet", "method": "no", "backbone_args": {}, "method_args": {}, '
    '"resolutions": ["x"]}',
    '{"model_type": "vit", "auto_map": {"AutoModel": "evil.Evil"}}',
    '{"architecture": "test_resnet", "model_args": {"nope": 1}}',
    '{"architecture": "test_resnet", "pretrained_cfg": {"input_size": "x"}}',
    '{"architecture": "test_resnet", "pretrained_cfg": {"std": [0, 0, 0]}}',
]


WEIGHTS = [b"", b"\0" * 1000, (2**60).to_bytes(8, "little") + b"{}", b"\x80\x04a pickle", b"PK\x03\x04"]
FILES = [("config.json", text.encode()) for text in HOSTILE] + [("model.safetensors", content) for content in WEIGHTS]


@pytest.mark.parametrize(("name", "content"), FILES)
def test_a_hostile_folder_is_a_value_error_of_one_line(name, content, run, tmp_path):
    folder = shutil.copytree(run / "backbone", tmp_path / "backbone")
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_backbone(folder)
    assert "\n" not in str(error.value)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_read(run, tmp_path, caplog):
    """As after an evaluation that was written into the checkpoint."""
    folder = shutil.copytree(run, tmp_path / "run")
    newest = find_backbone(folder)
    (newest / "model.safetensors").write_bytes(b"")
    older = find_backbone(folder)
    assert older != newest
    assert f"reading {older}; newer ones are not whole: {newest.name} (" in caplog.text
