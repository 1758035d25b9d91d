"""A recipe: the four groups of fields, checked together and against the tables of methods, schedules and data sets."""

import dataclasses
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml
from torch import nn

from hf_essl.common import one_line
from hf_essl.config import DataArguments, ModelArguments, SSLTrainingArguments, ViewArguments
from hf_essl.config.fields import default_of, fields_of
from hf_essl.config.files import merge, read_file, read_yaml
from hf_essl.config.inherited import OFTEN_USED, describe_inherited
from hf_essl.config.inherited import REFUSED as INHERITED_REFUSED
from hf_essl.config.packaged import find_recipe
from hf_essl.config.redact import without_paths
from hf_essl.config.resume import Change, as_comments
from hf_essl.config.training import WHOLE_SQUARE
from hf_essl.config.values import ALIASES, GROUPS, REFUSED, RecipeError, all_fields, convert, parse_overrides
from hf_essl.data.builtin import DATASETS
from hf_essl.methods import METHODS, SSLModel, check_backbone, check_method
from hf_essl.methods.backbone import accepted_arguments, meta_backbone
from hf_essl.methods.base import check_networks
from hf_essl.methods.checkpointing import check_checkpointing
from hf_essl.methods.tokens import check_tokens, install_token_dropout
from hf_essl.schedules import CURVES, Curriculum, check_schedule
from hf_essl.views.randaugment import check_operations

# the fields whose values are entries of a table; each entry has a `description`
TABLES: dict[str, Mapping[str, Any]] = {"method": METHODS, "lr_schedule": CURVES, "dataset": DATASETS}


@dataclass
class Recipe:
    """What to train, on which images, with which views, and how; recipes with equal groups are equal."""

    model: ModelArguments
    data: DataArguments
    views: ViewArguments
    training: SSLTrainingArguments
    source: str = field(default="", compare=False)  # the path, as it was given
    given: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # set by the files and overrides
    words: tuple[str, ...] = field(default=(), compare=False, repr=False)  # of the command that runs it
    changes: tuple[Change, ...] = field(default=(), compare=False, repr=False)  # made when it was resumed

    @classmethod
    def of(
        cls,
        model: ModelArguments | None,
        data: DataArguments,
        views: ViewArguments,
        training: SSLTrainingArguments,
        dataset: str,
    ) -> Self:
        """The recipe of a training from the Python API; `dataset` is the name of the training images.

        Raises ValueError if `model` is None: `SSLModel.from_timm` did not build it, so its arguments are not known.
        """
        if model is None:
            raise ValueError("the model was built by hand, so its recipe is not known; use SSLModel.from_timm")
        named = name_dataset(data, dataset)
        return cls(model, named, views, training, given=flat_fields(model, named, views, training))

    def check_network(self) -> None:
        """Raises ValueError for a backbone that cannot be built, or does not accept a resolution of the run.

        Nothing is loaded or downloaded; the second call for a network is free.
        """
        model, training = self.model, self.training
        check_backbone(model.backbone, model.pretrained)
        check_networks(model.method, model.method_args)
        accepted_arguments(model.backbone, model.backbone_args, self.views.resolutions)
        if self.views.drops_tokens:
            check_token_views(self.meta_network(), METHODS[model.method], self.views)
        if training.checkpoints_activations:
            check_checkpointing(self.meta_network(), training.checkpointing_options, training.torch_compile)

    def meta_network(self) -> nn.Module:
        """The backbone for all resolutions of the recipe, on the meta device; a ViT can drop tokens."""
        name, arguments = self.model.backbone, self.model.backbone_args
        network = meta_backbone(name, accepted_arguments(name, arguments, self.views.resolutions))
        install_token_dropout(network)
        return network

    def build_model(self) -> SSLModel:
        """The network with its method, for all resolutions of the recipe. Raises ValueError as `from_timm` does."""
        args = self.model
        return SSLModel.from_timm(
            args.backbone,
            args.method,
            pretrained=args.pretrained,
            backbone_args=args.backbone_args,
            method_args=args.method_args,
            resolutions=self.views.resolutions,
        )

    def redacted(self) -> Self:
        """The same recipe to show to others: paths of this machine are cut to their last component."""
        changes = tuple(Change(*without_paths(list(change))) for change in self.changes)
        return dataclasses.replace(self, given=without_paths(self.given), changes=changes)

    def command(self, processes: int = 1) -> str | None:
        """The command that ran it, without the paths of this machine; None from the Python API."""
        if not self.words:
            return None
        command = ["hf-essl"]
        words = [part for word in self.words for part in _redacted_words(word)]
        if processes > 1 and words[0] == "pretrain":
            command = ["accelerate", "launch", "--num_processes", str(processes), "-m", "hf_essl"]
        return shlex.join([*command, *words])

    def to_yaml(self) -> str:
        """The resolved recipe as YAML, without `extends`; it loads back to an equal recipe.

        What was changed when the run was resumed stands above it, as comments. Of transformers' own training arguments
        it holds those that were set and those whose default differs here.
        """
        blocks = []
        for name, group in GROUPS.items():
            own = list(group.__annotations__)
            shown = own + [key for key in fields_of(group) if key in self.given and key not in own]
            lines = [f"# {name}: {_first_line(group)}"]
            lines += [f"{key}: {_inline(self.given.get(key, default_of(group, key)))}" for key in shown]
            blocks.append("\n".join(lines))
        return as_comments(self.changes) + "\n\n".join(blocks) + "\n"


def load_recipe(path: str | Path, overrides: Sequence[str] = (), cell: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe and everything it extends, applies the overrides, checks and builds the groups.

    Args:
        path: of the file, or the name of a packaged recipe, see `find_recipe`.
        overrides: words of a command line, see `parse_overrides`.
        cell: fields of one run of a sweep, over those of the file.

    Raises:
        RecipeError: in one line, for anything wrong with either.
    """
    values = read_file(find_recipe(path), sweep=cell is not None)
    values = merge(values, {key: convert(key, value, str(path)) for key, value in (cell or {}).items()})
    words = ("pretrain" if cell is None else "sweep", str(path), *overrides)
    return build_recipe(merge(values, parse_overrides(overrides)), str(path), words)


def build_recipe(given: dict[str, Any], source: str, words: tuple[str, ...]) -> Recipe:
    """Checks converted fields and builds their groups. Raises RecipeError, in one line, as `load_recipe` does.

    Args:
        source: the path of the recipe, or the data set of a run without one.
        words: of the command line that repeats the run.
    """
    by_group = _split(given)
    try:
        model, data, views = (GROUPS[name](**by_group[name]) for name in ("model", "data", "views"))
        check_groups(model, data, views, unbuilt_training(by_group["training"]))
        training = SSLTrainingArguments(**by_group["training"])  # last: constructing it sets up the device
    except (ValueError, ImportError, OSError) as error:
        raise RecipeError(f"{source}: {one_line(error)}") from error
    return Recipe(model, data, views, training, source=source, given=given, words=words)


def read_recipe(path: str | Path) -> Recipe:
    """The recipe.yaml of a run, to report on it on any machine: nothing is checked, and no device is set up.

    It skips fields that only older versions had, and adds the evaluation crop of runs from before `eval_crop_pct`.
    Raises RecipeError for a file that is not a recipe.
    """
    content = read_yaml(Path(path))
    given = {key: convert(key, value, str(path)) for key, value in content.items() if key in all_fields()}
    given.setdefault("eval_crop_pct", WHOLE_SQUARE)
    by_group = _split(given)
    training = unbuilt_training(by_group.pop("training"))
    groups = {name: GROUPS[name](**values) for name, values in by_group.items()}
    return Recipe(**groups, training=training, source=str(path), given=given)


def check_groups(
    model: ModelArguments | None, data: DataArguments, views: ViewArguments, training: SSLTrainingArguments
) -> Curriculum:
    """Checks each group, what the tables require, and what must agree between groups; recipes and Python share it.

    `model` is None for a model that was built by hand. Returns the curriculum of the run. Raises ValueError.
    """
    if model is not None:
        model.check()
        check_method(model.method, model.method_args)
    data.check()
    views.check()
    check_operations(views)
    training.check()
    check_schedule(training)
    if data.streaming and training.max_steps <= 0:
        raise ValueError(
            f"max_steps is {training.max_steps} with streaming: true; a stream has no length, set max_steps to the "
            f"number of optimizer steps"
        )
    if data.cache == "device" and training.dataloader_num_workers > 0:
        raise ValueError(
            f"dataloader_num_workers is {training.dataloader_num_workers} with cache: device, which workers cannot "
            f"access; set dataloader_num_workers: 0 or cache: memory"
        )
    return Curriculum.from_args(views, training)


def check_token_views(backbone: nn.Module, method: type[SSLModel], views: ViewArguments) -> None:
    """Raises ValueError if views drop patch tokens that the network cannot drop, or of a teacher that is not there."""
    if views.teacher_tokens < 1 and not method.has_teacher:
        raise ValueError(
            f"teacher_tokens is {views.teacher_tokens:g}, but {method.title} has no momentum teacher; leave it out"
        )
    fields = ("min_tokens", "selection_tokens", "teacher_tokens")
    below = ", ".join(f"{name} is {value:g}" for name in fields if (value := getattr(views, name)) < 1)
    if not below:
        return
    try:
        check_tokens(backbone, views.resolutions)
    except ValueError as error:
        raise ValueError(f"{below}, but {error}") from None


def describe_fields() -> str:
    """Every field of the four groups with its help and its default, for `--help`."""
    blocks, all_own = [], {key for group in GROUPS.values() for key in group.__annotations__}
    for name, group in GROUPS.items():
        lines = [f"{name}: {_first_line(group)}"]
        for key in group.__annotations__:
            if key in INHERITED_REFUSED:
                continue
            text = (
                f"{fields_of(group)[key].metadata['help']} [{_inline(default_of(group, key)).replace('null', 'none')}]"
            )
            lines += textwrap.wrap(text, 110, initial_indent=f"  --{key:<28} ", subsequent_indent=" " * 33)
            for entry, known in TABLES.get(key, {}).items():
                lines += textwrap.wrap(
                    f"{entry}: {known.description}", 110, initial_indent=" " * 35, subsequent_indent=" " * 37
                )
        blocks.append("\n".join(lines))
    often = ["often used, of transformers.TrainingArguments:"]
    for key, text in OFTEN_USED.items():
        often += textwrap.wrap(text, 110, initial_indent=f"  --{key:<28} ", subsequent_indent=" " * 33)
    short = f"Short names: {', '.join(f'--{short} is --{name}' for short, name in ALIASES.items())}."
    others = describe_inherited({*all_own, *OFTEN_USED})
    paragraphs = ["\n".join(textwrap.wrap(text, 110, break_on_hyphens=False)) for text in (short, others)]
    return "\n\n".join([*blocks, "\n".join(often), *paragraphs])


def flat_fields(
    model: ModelArguments | None, data: DataArguments, views: ViewArguments, training: SSLTrainingArguments
) -> dict[str, Any]:
    """The groups as one flat mapping; of transformers' own arguments, those that differ from their defaults."""
    flat: dict[str, Any] = {}
    for group in (model, data, views):
        flat |= {} if group is None else dataclasses.asdict(group)
    values, defaults = training.to_dict(), unbuilt_training({}).to_dict()
    own = {key: values[key] for key in SSLTrainingArguments.__annotations__}
    inherited = fields_of(SSLTrainingArguments).keys() - own.keys() - REFUSED.keys() - {"accelerator_config"}
    further = {
        key: values[key]
        for key in values
        if key in inherited
        and values[key] != defaults[key]
        and (values[key] or defaults[key] not in (None, "", "none"))  # transformers fills these in
    }
    return flat | own | further


def name_dataset(data: DataArguments, name: str) -> DataArguments:
    """The data arguments, with the name of a data set that was passed as an object."""
    if name in (data.dataset, Path(data.dataset).resolve().name, Path(data.dataset).stem):
        return data
    return dataclasses.replace(data, dataset=name)


def unbuilt_training(values: Mapping[str, Any]) -> SSLTrainingArguments:
    """Training arguments that hold their fields and nothing else: no device is set up."""
    training = object.__new__(SSLTrainingArguments)
    for key in fields_of(SSLTrainingArguments):
        setattr(training, key, values[key] if key in values else default_of(SSLTrainingArguments, key))
    return training


def _split(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The values by group."""
    assert given.keys() <= all_fields().keys(), "`convert` has checked the keys"
    return {name: {key: given[key] for key in given if key in fields_of(group)} for name, group in GROUPS.items()}


def _redacted_words(word: str) -> list[str]:
    """A word of a command line without the folders of a path; `--field=/a/b` becomes two words."""
    name, equals, value = word.partition("=")
    return [_redacted(part) for part in ([name, value] if equals and word.startswith("--") else [word])]


def _redacted(word: str) -> str:
    """A word without the folders of a path, which may also be in a mapping such as `{checkpoint_path: /a/b}`."""
    try:
        value = yaml.safe_load(word)
    except (yaml.YAMLError, ValueError):  # an impossible date is a ValueError
        return without_paths(word)
    if isinstance(value, (dict, list)) and without_paths(value) != value:
        return _inline(without_paths(value))
    return without_paths(word)


def _first_line(group: type) -> str:
    return (group.__doc__ or "").splitlines()[0]


def _inline(value: Any) -> str:
    """YAML of a value on one line."""
    return yaml.safe_dump([value], default_flow_style=True, width=10**6, allow_unicode=True).strip()[1:-1]
