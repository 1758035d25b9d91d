"""A recipe: one flat YAML mapping, with `extends:` and command-line overrides, made into the four dataclasses.

    extends: baseline.yaml    # path relative to this file; the keys below override it, mappings replaced whole
    lr_schedule: f1_clr
    blur_p: [1.0, 0.1]

Every mistake is one line that names the key, the value, the file and the fix: `RecipeError`.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import shlex
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from hf_essl.arguments import DataArguments, ModelArguments, SSLTrainingArguments, ViewArguments
from hf_essl.schedules.resolution import resolution_schedule

if TYPE_CHECKING:
    from hf_essl.trainer import SSLTrainer

GROUPS: dict[str, type] = {
    "model": ModelArguments,
    "data": DataArguments,
    "views": ViewArguments,
    "training": SSLTrainingArguments,
}
COMMAND_LINE = "the command line"
SWEEP_KEYS = ("title", "rows", "grid")
"""Keys of a file that describes several runs, see `hf_essl.sweep`."""

_TOKEN = "a token never stands in a recipe or a command; set HF_TOKEN or run `hf auth login`"
_REFUSED = {
    "hf_token": _TOKEN,
    "hub_token": _TOKEN,
    "push_to_hub_token": _TOKEN,
    "lr_scheduler_type": "set lr_schedule instead",
    "lr_scheduler_kwargs": "set lr_schedule, warmup_epochs and one_cycle_fraction instead",
    "warmup_steps": "set warmup_epochs instead",
    "warmup_ratio": "set warmup_epochs instead",
}


class RecipeError(ValueError):
    """A recipe that cannot be run, in one line."""


@dataclass
class Recipe:
    """What to train, on which images, through which views, and how.

    Two recipes are equal where their four groups are, however they were written down.
    """

    model: ModelArguments
    data: DataArguments
    views: ViewArguments
    training: SSLTrainingArguments
    source: str = field(default="", compare=False)  # the path, as it was given
    given: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)  # what the files and overrides set
    words: tuple[str, ...] = field(default=(), compare=False, repr=False)  # of the command that runs it

    @classmethod
    def of(cls, trainer: SSLTrainer) -> Recipe:
        """The recipe of a trainer from the Python API.

        A data set that was given as an object is named, and cannot be loaded by that name alone.

        Raises ValueError for a model that `SSLModel.from_timm` did not build.
        """
        model = trainer.model.built_from
        if model is None:
            raise ValueError("the model was built by hand, its recipe is not known; build it by SSLModel.from_timm")
        return cls(model, _named_data(trainer), trainer.views.args, trainer.args, given=trainer_fields(trainer))

    def without_paths(self) -> Recipe:
        """The same recipe to show to others: of each path of this machine's folders, the last component alone."""
        from hf_essl.hub.public import without_paths  # imports timm

        return dataclasses.replace(self, given=without_paths(self.given))

    def command(self, processes: int = 1) -> str | None:
        """The command that ran it, without the paths of this machine's folders; None from the Python API."""
        if not self.words:
            return None
        command = ["hf-essl"]
        words = [part for word in self.words for part in _public_words(word)]
        if processes > 1 and words[0] == "pretrain":
            command = ["accelerate", "launch", "--num_processes", str(processes), "-m", "hf_essl.pretrain"]
            words = words[1:]
        return shlex.join([*command, *words])

    def to_yaml(self) -> str:
        """The resolved recipe as YAML, without `extends`; it loads back to an equal recipe.

        Of transformers' own training arguments it holds those that were set and those whose default differs here.
        """
        blocks = []
        for name, group in GROUPS.items():
            lines = [f"# {name}: {_first_line(group)}"]
            lines += [f"{key}: {_inline(self.given.get(key, _default(key)))}" for key in self._shown(group)]
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks) + "\n"

    def _shown(self, group: type) -> list[str]:
        own = list(group.__annotations__)
        return own + [f.name for f in dataclasses.fields(group) if f.name in self.given and f.name not in own]


def load_recipe(path: str | Path, overrides: Sequence[str] = (), cell: Mapping[str, Any] | None = None) -> Recipe:
    """Reads the recipe at `path` and all that it extends, applies the overrides, checks and builds the groups.

    Args:
        path: a YAML file.
        cell: fields of one run of a sweep, over those of the file.
        overrides: command-line words: `--field value`, `--field=value`, `--flag`, `--list_field 1.0 0.1`,
            `--mapping_field "{a: 1}"`; dashes and underscores are equal, and the last of two equal fields wins.

    Raises RecipeError, in one line, for whatever is wrong with either.
    """
    values = _read(Path(path), (), sweep=cell is not None)
    values = _over(values, {key: _convert(key, value, str(path)) for key, value in (cell or {}).items()})
    given = _over(values, _parse_overrides(overrides))
    try:
        groups = _build(given)
    except (ValueError, ImportError, OSError) as error:
        raise RecipeError(f"{path}: {' '.join(str(error).split())}") from error
    words = ("pretrain" if cell is None else "sweep", str(path), *overrides)
    return Recipe(**groups, source=str(path), given=given, words=words)


def read_recipe(path: str | Path) -> Recipe:
    """The recipe.yaml of a run, to tell of it on any machine: nothing is checked, and no device is set up.

    Raises RecipeError for a file that is no recipe.
    """
    given = _read(Path(path), ())
    values = {name: {k: given[k] for k in given if k in _names(group)} for name, group in GROUPS.items()}
    training = _unbuilt_training(values.pop("training"))
    groups = {name: GROUPS[name](**values[name]) for name in values}
    return Recipe(**groups, training=training, source=str(path), given=given)


def describe_fields() -> str:
    """Every field of the four groups with its help and its default, for `--help`."""
    blocks = []
    for name, group in GROUPS.items():
        lines = [f"{name}: {_first_line(group)}"]
        for key in group.__annotations__:
            text = f"{_fields()[key].metadata['help']} [{_inline(_default(key))}]"
            lines += textwrap.wrap(text, 110, initial_indent=f"  --{key:<28} ", subsequent_indent=" " * 33)
        blocks.append("\n".join(lines))
    own = set(SSLTrainingArguments.__annotations__) | set(_REFUSED)
    inherited = [f.name for f in dataclasses.fields(SSLTrainingArguments) if f.name not in own]
    closing = (
        f"The further fields of transformers.TrainingArguments work too "
        f"(https://huggingface.co/docs/transformers/main_classes/trainer): {', '.join(inherited)}."
    )
    return "\n\n".join([*blocks, "\n".join(textwrap.wrap(closing, 110, break_on_hyphens=False))])


# ---- files ----


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds. Raises RecipeError where it holds none, or a key twice."""
    return _parse_yaml(path, ())


def _read(path: Path, above: tuple[Path, ...], sweep: bool = False) -> dict[str, Any]:
    """The converted values of the file at `path` over those of the files that it extends."""
    chain = (*above, path)
    if path.resolve() in {p.resolve() for p in above}:
        raise RecipeError(f"recipes extend each other in a circle: {' -> '.join(p.name for p in chain)}")
    content = _parse_yaml(path, above)
    grid = {key: content.pop(key) for key in SWEEP_KEYS if key in content}
    if grid and not sweep:
        raise RecipeError(f"recipe {path} holds several runs ({', '.join(grid)}); `hf-essl sweep {path}` runs them")
    base = content.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise RecipeError(f"extends is {base!r} in {path}; expected the path of one recipe, relative to this file")
    values = {} if base is None else _read(path.parent / base, chain)
    return _over(values, {key: _convert(key, value, str(path)) for key, value in content.items()})


def _over(base: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
    """`delta` over `base`; another dataset leaves the configuration of the former one behind."""
    if "dataset" in delta:
        base = {key: value for key, value in base.items() if key != "dataset_config"}
    return base | delta


def _parse_yaml(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        extended = f", which {above[-1]} extends" if above else ""
        raise RecipeError(f"recipe {path}{extended} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is no UTF-8 text; a recipe is a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise RecipeError(f"recipe {path} is no valid YAML{where}: {problem}") from error
    if not isinstance(content, dict):
        found = "empty" if content is None else f"a {type(content).__name__}"
        raise RecipeError(f"recipe {path} is {found}; expected lines of `field: value`, such as `backbone: resnet50`")
    return content


class _Loader(yaml.SafeLoader):
    """YAML in which a key that is given twice is an error, where plain YAML drops the first in silence."""

    def construct_mapping(self, node, deep=False):
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


# ---- command line ----


def _parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`--field value…` words as converted values by field."""
    found: dict[str, list[str]] = {}
    key, open_to_more = None, False
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            key = name.replace("-", "_")
            _check_key(key, COMMAND_LINE)
            found[key] = [value] if equals else []
            open_to_more = not equals
        elif key is None or not open_to_more:
            raise RecipeError(f"unexpected word {word!r} on {COMMAND_LINE}; an override is --field value")
        else:
            found[key].append(word)
    return {key: _convert_words(key, values) for key, values in found.items()}


def _convert_words(key: str, words: list[str]) -> Any:
    """The value that the words after `--key` stand for: YAML, or the bare text where only text fits."""
    kinds = _kinds(_hints()[key])
    if not words and bool in kinds:
        return True
    if not words or "" in words:
        raise RecipeError(f"--{key} has no value on {COMMAND_LINE}; expected {_expected(key)}")
    if len(words) > 1 and list not in kinds:
        raise RecipeError(f"--{key} has {len(words)} values on {COMMAND_LINE}; expected {_expected(key)}")
    try:
        parsed = [yaml.safe_load(word) for word in words]
    except yaml.YAMLError:
        parsed = list(words)
    readings = [parsed, words] if len(words) > 1 else [parsed[0], parsed, words[0], words]
    return _convert(key, next((r for r in readings if _fits(key, r)), readings[0]), COMMAND_LINE)


# ---- one value ----


def _convert(key: Any, value: Any, where: str) -> Any:
    """`value` as the type of field `key`. Raises RecipeError for an unknown key or a value that does not fit."""
    _check_key(key, where)
    kinds = _kinds(_hints()[key])
    if type(None) in kinds and value != _default(key) and str(value).lower() in ("none", "null"):
        return None
    if not _fits(key, value):
        quote = (
            f"; in quotes, '{'yes' if value else 'no'}', it is text"
            if isinstance(value, bool) and str in kinds
            else ""
        )
        raise RecipeError(f"{key} is {value!r} in {where}; expected {_expected(key)}{quote}")
    return _adapter(key).validate_python(value)


def _fits(key: str, value: Any) -> bool:
    if bool not in _kinds(_hints()[key]) and any(isinstance(v, bool) for v in _flat(value)):
        return False  # Python counts True as the integer 1
    try:
        _adapter(key).validate_python(value)
    except ValidationError:
        return False
    return True


def _check_key(key: Any, where: str) -> None:
    if key in _REFUSED:
        raise RecipeError(f"{key} is not taken, in {where}: {_REFUSED[key]}")
    if key not in _fields():
        near = difflib.get_close_matches(str(key), _fields(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`hf-essl pretrain --help` lists the keys"
        raise RecipeError(f"unknown key {str(key)!r} in {where}; {hint}")


def _expected(key: str) -> str:
    """A field's type in words, such as "a list of numbers"."""
    return _in_words(_hints()[key])


def _in_words(hint: Any) -> str:
    if _is_union(hint):
        return " or ".join(dict.fromkeys(_in_words(part) for part in typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(str(choice.value) for choice in hint)
    if typing.get_origin(hint) is list:
        inner = _in_words(typing.get_args(hint)[0])
        return f"a list of {inner.split(' ', 1)[1]}s" if inner.startswith("a ") else f"a list of {inner}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none"}
    return names.get(hint, "a mapping")


def _kinds(hint: Any) -> set[Any]:
    """The plain types that a hint names, a Literal's by its values."""
    if _is_union(hint):
        return set().union(*(_kinds(part) for part in typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return {type(choice) for choice in typing.get_args(hint)}
    return {typing.get_origin(hint) or hint}


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _flat(value: Any) -> list[Any]:
    return [v for part in value for v in _flat(part)] if isinstance(value, list) else [value]


# ---- the fields ----


@cache
def _fields() -> dict[str, dataclasses.Field]:
    return {f.name: f for group in GROUPS.values() for f in dataclasses.fields(group)}


@cache
def _hints() -> dict[str, Any]:
    hints = {key: hint for group in GROUPS.values() for key, hint in typing.get_type_hints(group).items()}
    hints["resume_from_checkpoint"] = bool | str | None  # true is the last checkpoint, as in Trainer.train
    return hints


@cache
def _adapter(key: str) -> TypeAdapter:
    return TypeAdapter(_hints()[key], config=ConfigDict(allow_inf_nan=False))


def _default(key: str) -> Any:
    found = _fields()[key]
    return found.default if found.default_factory is dataclasses.MISSING else found.default_factory()


def _first_line(group: type) -> str:
    return (group.__doc__ or "").splitlines()[0]


def _inline(value: Any) -> str:
    """YAML of a value on one line."""
    return yaml.safe_dump([value], default_flow_style=True, width=10**6, allow_unicode=True).strip()[1:-1]


# ---- the groups ----


def trainer_fields(trainer: SSLTrainer) -> dict[str, Any]:
    """The flat fields of a trainer's recipe; without those of a model that `SSLModel.from_timm` did not build."""
    groups = [trainer.model.built_from, _named_data(trainer), trainer.views.args]
    fields: dict[str, Any] = {}
    for group in groups:
        fields |= {} if group is None else dataclasses.asdict(group)
    return fields | _given_training(trainer.args)


def _named_data(trainer: SSLTrainer) -> DataArguments:
    """The data arguments, with the name of a data set that was given as an object."""
    data, name = trainer.data_args, trainer.train_dataset.name
    if name in (data.dataset, Path(data.dataset).resolve().name, Path(data.dataset).stem):
        return data
    return dataclasses.replace(data, dataset=name)


def _given_training(args: SSLTrainingArguments) -> dict[str, Any]:
    """The package's own training arguments, and those of transformers' that differ from their defaults."""
    values, defaults = args.to_dict(), _unbuilt_training({}).to_dict()
    own = {key: values[key] for key in SSLTrainingArguments.__annotations__}
    further = {
        key: value
        for key, value in values.items()
        if key in _names(SSLTrainingArguments) - set(own) - set(_REFUSED) - {"accelerator_config"}
        and value != defaults[key]
        and (value or defaults[key] not in (None, "", "none"))  # transformers fills these in
    }
    return own | further


def _public_words(word: str) -> list[str]:
    """A word of a command line, `--field=/a/b` as two, without the path's folders."""
    from hf_essl.hub.public import without_paths  # imports timm

    field_name, equals, value = word.partition("=")
    parts = [field_name, value] if equals and word.startswith("--") else [word]
    return without_paths(parts)


def _build(given: Mapping[str, Any]) -> dict[str, Any]:
    """The four groups by name. Training arguments come last: to construct them is to set up the device."""
    values = {name: {k: given[k] for k in given if k in _names(group)} for name, group in GROUPS.items()}
    model = ModelArguments(**values["model"])
    data = DataArguments(**values["data"])
    views = ViewArguments(**values["views"])
    _check(model, data, views, _unbuilt_training(values["training"]))
    return {"model": model, "data": data, "views": views, "training": SSLTrainingArguments(**values["training"])}


def _names(group: type) -> set[str]:
    return {f.name for f in dataclasses.fields(group)}


def _unbuilt_training(values: Mapping[str, Any]) -> SSLTrainingArguments:
    """Training arguments that hold their fields and nothing else: no device is touched."""
    training = object.__new__(SSLTrainingArguments)
    for key in _names(SSLTrainingArguments):
        setattr(training, key, values[key] if key in values else _default(key))
    return training


def _check(model: ModelArguments, data: DataArguments, views: ViewArguments, training: SSLTrainingArguments) -> None:
    """Each group by itself, then what must agree between groups."""
    from hf_essl.methods import METHODS  # imports timm

    if model.method not in METHODS:
        near = difflib.get_close_matches(model.method, METHODS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"method is {model.method!r}; take one of {', '.join(METHODS)}{hint}")
    if not training.num_train_epochs > 0:
        raise ValueError(f"num_train_epochs is {training.num_train_epochs:g}; it must be above 0, such as 200")
    data.check()
    views.check()
    training.check()
    resolution_schedule(views, training.warmup_fraction)
    if data.streaming and training.max_steps <= 0:
        raise ValueError(
            f"max_steps is {training.max_steps} with streaming: true; a stream has no length, set max_steps to the "
            f"optimizer steps of the run"
        )
    if data.cache == "device" and training.dataloader_num_workers > 0:
        raise ValueError(
            f"dataloader_num_workers is {training.dataloader_num_workers} with cache: device, which workers cannot "
            f"reach; set dataloader_num_workers: 0 or cache: memory"
        )
