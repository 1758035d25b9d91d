"""Loads a trained backbone from a run, a checkpoint, an exported folder or the Hub; reads safetensors only."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import torch
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from hf_essl.common import one_line, unknown
from hf_essl.config import DataArguments, ViewArguments
from hf_essl.config.fields import Count, Part, checked, default_of, fields_of
from hf_essl.config.training import EVAL_CROP_PCT, WHOLE_SQUARE
from hf_essl.data.decode import image_path, open_image
from hf_essl.evaluation.pooling import PooledFeatures
from hf_essl.methods import METHODS, SSLModel
from hf_essl.methods.backbone import LOADING, build_backbone, check_backbone
from hf_essl.methods.pretrained import LIBRARY
from hf_essl.methods.sources import library_of, read_config
from hf_essl.run_folder import CONFIG, PREPROCESSOR, RECIPE, WEIGHTS, newest_whole
from hf_essl.views.crops import INTERPOLATION, canvas_size

logger = logging.getLogger(__name__)

PREFIXES = {"student": "backbone.", "teacher": "teacher.backbone."}
"""Where a checkpoint keeps the weights of each backbone."""
OF_THE_DATASET = ("image_column", "label_column", "train_split", "eval_split", "eval_holdout")
"""The data arguments that belong to a data set: its columns, its splits and its hold-out."""
HUB_ID = re.compile(r"(?:hf[-_]hub:)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


class LoadedBackbone(NamedTuple):
    """What `load_backbone` returns.

    backbone: B x 3 x r x r to B x D, on the CPU, in evaluation mode.
    resolution: r, the test resolution in pixels.
    mean, std: per channel, for the normalization of pixels in [0, 1].
    crop_pct: side of the center crop of test images, as a share of the short side.
    interpolation: of the resize, by timm's name.
    pool: one of `POOLS`; None for the network's own pooling.

        loaded = load_backbone("user/name")
        features = loaded.backbone(loaded.preprocess(["cat.jpg", "dog.jpg"]))  # 2 x D
    """

    backbone: nn.Module
    resolution: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = EVAL_CROP_PCT
    interpolation: str = INTERPOLATION
    pool: str | None = None

    @property
    def network(self) -> nn.Module:
        """The network that was trained, without another pooling."""
        return self.backbone.backbone if isinstance(self.backbone, PooledFeatures) else self.backbone

    def pooled(self, pool: str | None = None, layers: int | None = None) -> "LoadedBackbone":
        """The same network with another pooling; None keeps this one's, see `PooledFeatures`.

        Raises ValueError for a network without these tokens.
        """
        pool = pool or self.pool or (None if layers is None else "cls")
        if pool is None:
            return self
        return self._replace(backbone=PooledFeatures(self.network, pool, layers or 1).eval(), pool=pool)

    def preprocess(self, images: Iterable[Any]) -> Tensor:
        """Images as `backbone` expects them, N x 3 x r x r: the short side resized, center-cropped and normalized.

        It is timm's own transform, the one of the exported configuration. The evaluation resizes each image twice, to
        its decoded size and to the crop; their features have a cosine similarity above 0.99.

        Args:
            images: N paths, PIL images or encoded bytes.

        Raises ValueError for an image that cannot be read.
        """
        transform = create_transform(
            (3, self.resolution, self.resolution),
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
        )
        return torch.stack([transform(_picture(image)) for image in images])


@checked
def load_backbone(
    source: str | Path,
    *,
    which: str = "student",
    backbone: str | nn.Module | None = None,
    resolution: Count | None = None,
    crop_pct: Part | None = None,
    pool: str | None = None,
) -> LoadedBackbone:
    """Loads a backbone with its test resolution, crop and normalization; nothing is unpickled.

    Args:
        source: the folder of a run (its last checkpoint, or its `backbone/` if it has none), of a checkpoint, or of an
            exported backbone; or a Hub id in timm's form, user/name or hf-hub:user/name@revision.
        which: student, or teacher: the momentum teacher of BYOL, MoCo v2+ and DINO, which only checkpoints contain.
        backbone: name of the architecture, for a checkpoint without the `recipe.yaml` of its run; or the network
            itself, for one of your own class.
        resolution: test resolution in pixels; by default that of the training.
        crop_pct: side of the center crop of test images, as a share of the short side, in (0, 1]; by default what the
            backbone was made with: `eval_crop_pct` of its run (1, the whole center square, in runs from before this
            setting), or `crop_pct` of an exported configuration. A checkpoint without a recipe gets 0.875.
        pool: features of a ViT: its class token (cls), the mean of its patches (mean), or both (cls_mean); by default
            as the backbone was exported, or the network's own.

    Raises ValueError for a source that does not exist, cannot be downloaded or contains no backbone, for weights that
    are not safetensors or do not fit, for a missing teacher, and for a resolution, crop_pct or pool that cannot work.
    """
    if which not in PREFIXES:
        raise ValueError(unknown("which", which, PREFIXES))
    folder = find_backbone(source)
    if (folder / CONFIG).is_file():
        with _explained(f"the backbone in {folder} cannot be loaded", TypeError, KeyError, RecursionError, OSError):
            loaded = _exported(folder, which, backbone if isinstance(backbone, nn.Module) else None)
    else:
        loaded = _from_checkpoint(folder, which, backbone)
    loaded = loaded.pooled(pool)
    if crop_pct is not None:
        loaded = loaded._replace(crop_pct=crop_pct)
    if resolution is None:
        return loaded
    problem = f"resolution is {resolution}, which this {type(loaded.network).__name__} does not accept"
    with _explained(problem, AssertionError, RuntimeError), torch.inference_mode():
        loaded.backbone(torch.zeros(1, 3, resolution, resolution))
    return loaded._replace(resolution=resolution)


def find_backbone(source: str | Path) -> Path:
    """The folder of the weights: a checkpoint, an exported backbone, or one in the Hub's cache.

    Raises ValueError as `load_backbone` does.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return _download(str(source))
    if (folder / WEIGHTS).is_file():
        return folder
    try:
        found = newest_whole(folder)
        if found.skipped:
            logger.warning("reading %s; newer ones are not whole: %s", found.path, ", ".join(found.skipped))
        return found.path
    except ValueError:
        if (folder / "backbone" / WEIGHTS).is_file():
            return folder / "backbone"
    raise ValueError(
        f"{folder} contains no {WEIGHTS}, no complete checkpoint and no backbone; give the folder of a run, a "
        f"checkpoint or an exported backbone (other formats are not read)"
    )


def run_recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe of a checkpoint or an exported backbone, from its folder or its run's; empty without one."""
    path = folder / RECIPE if (folder / RECIPE).is_file() else folder.parent / RECIPE
    if not path.is_file():
        return {}
    with _explained(f"recipe {path} cannot be read", yaml.YAMLError, UnicodeDecodeError):
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    return recipe if isinstance(recipe, dict) else {}


def data_of_run(
    data: DataArguments, recipe: Mapping[str, Any], resolution: int, image_size: int | None = None
) -> DataArguments:
    """The data arguments with the white and the canvas of the backbone's run, unless they are given.

    The canvas is at least `resolution` pixels; without a run it is that of `canvas_size`.
    """
    if image_size is None:
        image_size = max(recipe.get("image_size") or canvas_size(resolution), resolution)
    white = recipe.get("white_level") if data.white_level is None else data.white_level
    return replace(data, image_size=image_size, white_level=white)


def arguments_of_run(source: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The columns, splits and hold-out of the run of a backbone, where its data set is read again.

    Args:
        source: of the backbone; only a folder knows its run.
        given: data arguments that the user has set, with `dataset`; the run's others are returned. A split and a
            hold-out exclude each other. It is the run's data set if its name is.
    """
    recipe = run_recipe(Path(source).expanduser())
    if PurePath(given["dataset"]).name != PurePath(str(recipe.get("dataset"))).name:
        return {}
    chosen = {"eval_split", "eval_holdout"}
    taken = given.keys() | (chosen if chosen & given.keys() else set())
    found = {name: recipe[name] for name in OF_THE_DATASET if name not in taken and name in recipe}
    return {name: value for name, value in found.items() if value not in (None, default_of(DataArguments, name))}


def _picture(image: Any) -> Image.Image:
    """The whole image in its own size, RGB."""
    with _explained(f"image {image_path(image) or ''} cannot be read", Exception):  # PIL raises errors of many types
        return open_image(image)


@contextmanager
def _explained(problem: str, *errors: type[Exception]) -> Iterator[None]:
    """Turns these errors into a ValueError of one line: the problem, and the error's own message."""
    try:
        yield
    except errors as error:
        raise ValueError(f"{problem}: {one_line(error)}") from error


def _exported(folder: Path, which: str, module: nn.Module | None) -> LoadedBackbone:
    if which == "teacher":
        raise ValueError(f"which is teacher, but {folder} is an exported backbone, the student; give a checkpoint")
    config = read_config(folder)
    library = library_of(config)
    if library == "module":
        return _own_exported(folder, config, module)
    if library == LIBRARY:
        return _loaded_method(SSLModel.from_folder(folder))
    check_backbone(str(folder), pretrained=True)
    name = config.get("architecture") or config.get("model_type")
    with _explained(f"the weights in {folder} do not fit {name}", RuntimeError, SafetensorError, OSError):
        model = build_backbone(str(folder), pretrained=True)
    return _loaded(model).pooled(config.get("pool"))


def _loaded_method(method: SSLModel) -> LoadedBackbone:
    """The backbone of `SSLModel.save_pretrained`, at the largest resolution that it was built for."""
    loaded = _loaded(method.backbone)
    return loaded._replace(resolution=max(method.resolutions, default=loaded.resolution))


def _own_exported(folder: Path, config: dict[str, Any], module: nn.Module | None) -> LoadedBackbone:
    """The weights of a network of one's own class."""
    if module is None:
        raise ValueError(
            f"{folder} holds the weights of {config.get('architecture')}, a class of its author; build this network "
            f"and pass it: load_backbone(…, backbone=network)"
        )
    with _explained(f"the weights in {folder} do not fit {type(module).__name__}", RuntimeError, SafetensorError):
        module.load_state_dict(load_file(folder / WEIGHTS))
    return _loaded(module, config.get("pretrained_cfg") or {})


def _loaded(model: nn.Module, preprocessing: dict[str, Any] | None = None) -> LoadedBackbone:
    """A backbone with its own preprocessing, or with another one in timm's form."""
    config = resolve_model_data_config(model, pretrained_cfg=preprocessing, use_test_size=True)
    crop = config["crop_pct"], config["interpolation"]
    if not all(value > 0 for value in (*config["std"], crop[0])):
        raise ValueError(f"std is {config['std']} and crop_pct {crop[0]} in the configuration; both must be above 0")
    return LoadedBackbone(model.eval(), config["input_size"][-1], config["mean"], config["std"], *crop)


def _from_checkpoint(folder: Path, which: str, given: str | nn.Module | None) -> LoadedBackbone:
    recipe = run_recipe(folder)
    name = given or recipe.get("backbone")
    if name is None:
        raise ValueError(f"{folder.parent} contains no {RECIPE} with a backbone; pass backbone, such as resnet50")
    model = name if isinstance(name, nn.Module) else _architecture(name, {} if given else recipe)
    with _explained(f"the {which}'s weights in {folder} do not fit {name}", RuntimeError):
        model.load_state_dict(_weights(folder / WEIGHTS, which))
    config = resolve_model_data_config(model)
    resolution = recipe.get("resolution") or config["input_size"][-1]
    crop_pct = recipe.get("eval_crop_pct", WHOLE_SQUARE if recipe else EVAL_CROP_PCT)
    return LoadedBackbone(model.eval(), resolution, config["mean"], config["std"], crop_pct)


def _architecture(name: str, recipe: dict[str, Any]) -> nn.Module:
    """The network of a checkpoint, with random weights."""
    check_backbone(name)
    arguments = {key: value for key, value in (recipe.get("backbone_args") or {}).items() if key not in LOADING}
    with _explained(f"backbone {name} cannot be built", OSError):
        return build_backbone(name, backbone_args=arguments, resolutions=_resolutions(recipe))


def _resolutions(recipe: dict[str, Any]) -> tuple[int, ...]:
    """Those of the training, for which the backbone was built."""
    known = {key: value for key, value in recipe.items() if key in fields_of(ViewArguments)}
    return ViewArguments(**known).resolutions if "resolution" in known else ()


def _weights(path: Path, which: str) -> dict[str, Tensor]:
    """The weights of one backbone in a checkpoint, under the backbone's own names."""
    prefix = PREFIXES[which]
    with _explained(f"{path} cannot be read", OSError, SafetensorError), safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118  # not a mapping
        weights = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    if not weights and which == "teacher":
        methods = ", ".join(name for name, method in METHODS.items() if method.has_teacher)
        raise ValueError(f"which is teacher, but {path} contains none; only {methods} have one, choose student")
    if not weights:
        raise ValueError(f"{path} contains no {prefix}* weights; give a checkpoint of `hf-essl pretrain`")
    return weights


def _download(source: str) -> Path:
    """Config and safetensors of a Hub id, from the local cache if they are in it."""
    found = HUB_ID.fullmatch(source)
    if not found:
        raise ValueError(
            f"source is {source}, which does not exist; give the folder of a run, a checkpoint or an exported "
            f"backbone, or a Hub id such as timm/resnet50.a1_in1k"
        )
    name, revision = found.groups()
    problem = f"source is {source}, which is not a folder here and cannot be downloaded from the Hub"
    with _explained(problem, HfHubHTTPError, OSError, ValueError):  # offline, unknown, private
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS, PREPROCESSOR]))
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise ValueError(f"{source} on the Hub contains no {file}; give a backbone in timm's form, in safetensors")
    return folder
