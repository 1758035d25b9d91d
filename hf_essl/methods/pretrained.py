"""`save_pretrained`, `from_pretrained` and `push_to_hub` of a whole method, by huggingface_hub's ModelHubMixin."""

import json
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hf_essl.common import one_line
from hf_essl.methods.backbone import storable
from hf_essl.methods.sources import SOURCES, find_source, read_config
from hf_essl.run_folder import CONFIG, WEIGHTS

LIBRARY = "hf_essl"
FIELDS = ("backbone", "method", "backbone_args", "method_args")


class PretrainedMethod(ModelHubMixin, library_name=LIBRARY, tags=["self-supervised-learning"]):
    """A method that is saved with its backbone, heads, teacher and state, as config.json and model.safetensors.

    `save_pretrained(folder)` and `push_to_hub("user/name")` write it; `SSLModel.from_pretrained` of a folder or a Hub
    id builds it again. `load_backbone` reads such a folder too.
    """

    config: Any
    network_args: ClassVar[tuple[str, ...]]
    resolutions: tuple[int, ...]

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.config is None:
            raise ValueError("the model was built by hand, so it cannot be saved to be built again; use from_timm")
        facts = {"library": LIBRARY, **{name: getattr(self.config, name) for name in FIELDS}}
        facts["backbone"] = _portable(facts["backbone"])
        for argument in self.network_args:
            _check_public(argument, facts["method_args"][argument])
        facts["resolutions"] = list(self.resolutions)
        state = storable({name: value.detach().cpu() for name, value in self.state_dict().items()})  # type: ignore[attr-defined]
        (save_directory / CONFIG).write_text(json.dumps(facts, indent=2), encoding="utf-8")
        save_file(state, save_directory / WEIGHTS, metadata={"format": "pt"})

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, revision, cache_dir, force_download, local_files_only, token, **others
    ):
        folder = Path(model_id)
        if not folder.is_dir():
            options = {"revision": revision, "cache_dir": cache_dir, "force_download": force_download}
            options |= {"local_files_only": local_files_only, "token": token, "allow_patterns": [CONFIG, WEIGHTS]}
            folder = Path(snapshot_download(model_id, **options))
        return cls.from_folder(folder)

    @classmethod
    def from_folder(cls, folder: Path):
        """The model in a folder. Raises ValueError in one line for a folder that does not hold one."""
        try:
            facts = read_config(folder)
            given = {name: facts[name] for name in FIELDS} | {"resolutions": facts["resolutions"]}
            if facts["library"] != LIBRARY:
                raise KeyError("library")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder} holds no method of hf_essl ({one_line(error)}); give a folder of save_pretrained, or "
                f"load a backbone with load_backbone"
            ) from error
        model = cls.from_timm(**given)  # type: ignore[attr-defined]
        try:
            model.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"the weights in {folder} do not fit its {CONFIG}: {one_line(error)}") from error
        return model


def _portable(backbone: str) -> str:
    """The name of a backbone on any machine. Raises ValueError for one that only this machine or program has."""
    source, name = find_source(backbone)
    folder = Path(name.removeprefix("local-dir:")).expanduser()
    if not folder.is_dir():
        return backbone
    architecture = read_config(folder).get("architecture")
    if architecture is None:
        raise ValueError(f"backbone is {backbone}, a folder of this machine; use the Hub id of the model to save it")
    return f"torchvision:{architecture}" if source is SOURCES["torchvision"] else architecture


def _check_public(argument: str, name: str) -> None:
    """Raises ValueError for a network that is only a folder here; its weights are not saved."""
    folder = Path(find_source(name)[1].removeprefix("local-dir:")).expanduser()
    if folder.is_dir():
        raise ValueError(
            f"{argument} is {name}, a folder of this machine; push it, and train with its Hub id to save it"
        )
