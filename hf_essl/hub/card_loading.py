"""The code of a card that loads its backbone in three ways; the tests run it."""

from __future__ import annotations

import json
from pathlib import Path

THREE_WAYS = """With timm:

```python
import timm
import torch
from PIL import Image

model = timm.create_model("{timm}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
with torch.inference_mode():
    features = model(transform(Image.open("image.png").convert("RGB"))[None])  # 1 x {width}
```

With transformers:

```python
from transformers import pipeline

extract = pipeline("image-feature-extraction", model="{transformers}", pool=True)
features = extract("image.png")  # 1 x {width}; `AutoModel.from_pretrained` loads it as well
```

With hf_essl:

```python
import torch
from hf_essl import load_backbone

loaded = load_backbone("{hf_essl}")
with torch.inference_mode():
    features = loaded.backbone(loaded.preprocess(["image.png"]))  # 1 x {width}
```"""


def loading(folder: Path, repo_id: str | None) -> str:
    """Three blocks of code, for the Hub's `repo_id`, or without one for the folder, as seen from the one above it."""
    width = json.loads((folder / "config.json").read_text()).get("num_features", "D")
    if repo_id:
        return THREE_WAYS.format(timm=f"hf-hub:{repo_id}", transformers=repo_id, hf_essl=repo_id, width=width)
    place = folder.name
    where = f"Run it where this folder, `{place}/`, and an image lie.\n\n"
    return where + THREE_WAYS.format(timm=f"local-dir:{place}", transformers=place, hf_essl=place, width=width)
