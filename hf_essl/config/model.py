"""What to train: the network and the method."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from hf_essl.config.fields import check_fields, option
from hf_essl.config.redact import without_paths


@dataclass
class ModelArguments:
    """The network and the method."""

    backbone: str = option("A timm model name, such as resnet50, convnext_tiny or vit_small_patch16_224.", "resnet50")
    method: str = option("The self-supervised method.", "simsiam")
    backbone_args: dict = option(
        "Further arguments of timm.create_model, such as {drop_path_rate: 0.1}; image sizes are set as needed.",
        factory=dict,
    )
    method_args: dict = option("Further arguments of the method's class, such as {projector_dim: 2048}.", factory=dict)
    pretrained: bool = option("Start from timm's published weights instead of a random initialization.", False)

    def check(self) -> None:
        """Raises ValueError for values of the wrong type."""
        check_fields(self)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, without folders: what transformers' tracker callbacks record of a model."""
        return without_paths(dataclasses.asdict(self))

    def to_json_string(self) -> str:  # for the same callbacks
        return json.dumps(self.to_dict(), indent=2)
