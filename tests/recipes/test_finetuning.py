"""The fine-tuning code of recipes/README.md, as it stands there, on tiny images."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hf_essl import export_backbone
from hf_essl.methods import SSLModel

ROOT = Path(__file__).parents[2]
HEADING = "### Fine-tune with the Hugging Face Trainer"


@pytest.mark.slow
def test_the_code_fine_tunes_the_exported_backbone_without_hf_essl(tmp_path):
    section = (ROOT / "recipes" / "README.md").read_text().partition(HEADING)[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    assert "hf_essl" not in code
    generator = torch.Generator().manual_seed(0)
    for index in range(40):
        name, low = ("dark", 0) if index % 2 else ("light", 150)
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        noise = torch.randint(low, low + 100, (40, 48, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(tmp_path / "images" / name / f"{index}.png")
    torch.manual_seed(0)
    model = SSLModel.from_timm("test_resnet", method_args={"projector_dim": 16, "predictor_hidden": 8})
    folder = tmp_path / "runs" / "quickstart" / "backbone"
    folder.parent.mkdir(parents=True)
    export_backbone(model.eval(), folder, input_size=32)

    environment = {
        **os.environ,
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",
    }
    environment |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(re.findall(r"'eval_accuracy': '?([\d.]+)", done.stdout)[-1]) == 1.0, done.stdout[-500:]
    (saved,) = (tmp_path / "runs" / "finetuned").glob("checkpoint-*/model.safetensors")
    before, after = load_file(folder / "model.safetensors"), load_file(saved)
    assert after.keys() - before.keys() == {"fc.weight", "fc.bias"}
    assert [name for name in before if name.endswith("weight") and torch.equal(before[name], after[name])] == []
