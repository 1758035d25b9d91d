"""What to train: the network and the method."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from hf_essl.config.fields import check_fields, on_resume, option
from hf_essl.config.redact import without_paths


@dataclass
class ModelArguments:
    """The network and the method."""

    resume_rules = on_resume(fixed="backbone method backbone_args method_args pretrained")

    backbone: str = option(
        "A timm model such as resnet50 or vit_small_patch16_224, torchvision:NAME, transformers:ORG/NAME, or a folder "
        "with an exported backbone.",
        "resnet50",
    )
    method: str = option("The self-supervised method.", "simsiam")
    backbone_args: dict = option(
        "Further arguments of the network, such as {drop_path_rate: 0.1} of timm; image sizes are set as needed.",
        factory=dict,
    )
    method_args: dict = option("Further arguments of the method's class, such as {projector_dim: 2048}.", factory=dict)
    pretrained: bool = option("Start from published weights instead of a random initialization.", False)

    def check(self) -> None:
        """Raises ValueError for values of the wrong type."""
        check_fields(self)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, without folders: what transformers' tracker callbacks record of a model."""
        return without_paths(dataclasses.asdict(self))

    def to_json_string(self) -> str:  # for the same callbacks
        return json.dumps(self.to_dict(), indent=2)
