"""Exports in three formats: features equal PyTorch's, and what cannot be exported is refused."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from hf_essl import cli, export_backbone, load_backbone
from hf_essl.hub import formats
from hf_essl.methods import SSLModel


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    model = SSLModel.from_timm("test_resnet", method_args={"projector_dim": 16, "predictor_hidden": 8})
    model.train()(torch.randn(8, 3, 48, 48), torch.randn(8, 3, 48, 48))  # BatchNorm statistics of its own
    folder = tmp_path_factory.mktemp("run") / "backbone"
    return export_backbone(model.eval(), folder, input_size=48, crop_pct=0.9)


def images(batch):
    return torch.randn(batch, 3, 48, 48, generator=torch.Generator().manual_seed(batch))


def expected(source, batch):
    with torch.no_grad():
        return timm.create_model(f"local-dir:{source}", pretrained=True).eval()(images(batch))


def test_safetensors_load_in_timm(source, tmp_path):
    done = formats.export(source, "safetensors", tmp_path / "out")
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(images(4)), expected(source, 4))
    assert (done.resolution, done.dimensions, done.difference) == (48, again.num_features, 0)
    assert load_backbone(tmp_path / "out").crop_pct == 0.9


@pytest.mark.slow
def test_torch_loads_without_hf_essl_and_timm(source, tmp_path):
    done = formats.export(source, "torch", tmp_path / "out")
    torch.save({batch: (images(batch), expected(source, batch)) for batch in (1, 5)}, tmp_path / "pairs.pt")
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("hf_essl", "timm", "transformers")))  # importing one of them is an error
import torch
network = torch.export.load({str(done.path)!r}).module()
for images, expected in torch.load({str(tmp_path / "pairs.pt")!r}).values():
    with torch.no_grad():
        torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-5)
print("equal")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.stdout.strip() == "equal", result.stderr
    facts = json.loads((tmp_path / "out" / "preprocessing.json").read_text())
    assert facts["input_size"] == [3, 48, 48] and facts["crop_pct"] == 0.9
    assert facts["mean"] == list(load_backbone(source).mean)


@pytest.mark.slow
def test_onnx_takes_any_batch_size(source, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = formats.export(source, "onnx", tmp_path / "out")
    session = runtime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        (found,) = session.run(["features"], {"pixel_values": images(batch).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected(source, batch), rtol=0, atol=1e-4)
    assert done.difference < 1e-4


@pytest.mark.parametrize(("error", "refused"), [(5e-5, False), (2e-4, True), (float("nan"), True)])
def test_features_that_differ_are_refused(error, refused, source, tmp_path, monkeypatch):
    def read(folder):
        network = load_backbone(folder).backbone
        return lambda images: network(images) + error

    monkeypatch.setitem(formats.FORMATS, "wrong", formats.Format("", "w", formats._write_safetensors, read))
    if not refused:
        found = formats.export(source, "wrong", tmp_path / "out").difference
        assert found == pytest.approx(error, rel=0.1)
        return
    with pytest.raises(ValueError, match=r"wrong file differ from PyTorch's by .*; nothing is written"):
        formats.export(source, "wrong", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_traced_is_one_line(source, tmp_path, monkeypatch):
    class Branching(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    loaded = load_backbone(source)._replace(backbone=Branching())
    monkeypatch.setattr(formats, "load_backbone", lambda *args, **kwargs: loaded)
    with pytest.raises(ValueError, match=r"cannot be exported as torch: .*choose another --format") as caught:
        formats.export(source, "torch", tmp_path / "out")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["NOWHERE/x/y", "--format", "safetensors"], "NOWHERE/x/y"),
        (["SOURCE", "--format", "pickle"], "choose from"),
        (["SOURCE"], "required: --format"),
    ],
)
def test_mistakes_are_one_line(words, message, source, capsys):
    assert cli.main(["export", *(str(source) if word == "SOURCE" else word for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_missing_packages_are_named_before_work(source, tmp_path, monkeypatch):
    missing = formats.Format("", "m", formats._write_onnx, formats._read_onnx, ("torch", "no_such_package"))
    monkeypatch.setitem(formats.FORMATS, "onnx", missing)
    with pytest.raises(ValueError, match="onnx needs no_such_package; run `pip install torch no_such_package`"):
        formats.export(source, "onnx", tmp_path / "out")


def test_an_existing_file_is_kept(source, tmp_path, capsys):
    words = ["export", str(source), "--format", "safetensors", "--output", str(tmp_path / "out")]
    assert cli.main(words) == 0
    assert "largest difference from PyTorch 0" in capsys.readouterr().out
    assert cli.main(words) == 2
    assert "model.safetensors exists; choose another --output" in capsys.readouterr().err
    assert cli.main([*words, "--overwrite"]) == 0
