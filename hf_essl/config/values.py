"""One value of a recipe: from YAML or from the words of a command line to what its field holds, or a `RecipeError`."""

from collections.abc import Sequence
from typing import Any

import yaml

from hf_essl.common import nearest
from hf_essl.config.data import DataArguments
from hf_essl.config.fields import default_of, fields_of, hints_of, kinds, validate
from hf_essl.config.inherited import REFUSED as REFUSED_FIELDS
from hf_essl.config.model import ModelArguments
from hf_essl.config.training import SSLTrainingArguments
from hf_essl.config.views import ViewArguments

GROUPS: dict[str, type] = {
    "model": ModelArguments,
    "data": DataArguments,
    "views": ViewArguments,
    "training": SSLTrainingArguments,
}
COMMAND_LINE = "the command line"
ALIASES = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "data": "dataset",
}
"""Short names of fields on the command line."""
HINTS = {
    "bs": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "workers": "dataloader_num_workers",
    "num_workers": "dataloader_num_workers",
    "epoch": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "steps": "max_steps",
    "model": "backbone",
    "arch": "backbone",
    "wd": "weight_decay",
    "output": "output_dir",
    "out_dir": "output_dir",
    "optimizer": "optim",
    "temperature": "method_args",
}
"""What other tools call fields; an error names the field."""

_TOKEN = "never put a token in a recipe or a command; set HF_TOKEN or run `hf auth login`"
REFUSED = {  # names that a recipe does not accept with any value, and what to do instead
    **{name: _TOKEN for name in ("hf_token", "hub_token", "push_to_hub_token")},
    **{name: REFUSED_FIELDS[name][1] for name in ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")},
    "warmup_ratio": REFUSED_FIELDS["warmup_steps"][1],
}


class RecipeError(ValueError):
    """A recipe that cannot be run, in one line: the key, the value, the file and the fix."""


def group_of(key: str) -> type:
    """The group that holds a field; names are unique over the four groups."""
    return next(group for group in GROUPS.values() if key in fields_of(group))


def all_fields() -> dict[str, Any]:
    return {key: field for group in GROUPS.values() for key, field in fields_of(group).items()}


def convert(key: Any, value: Any, where: str) -> Any:
    """`value` as the type of field `key`. Raises RecipeError for an unknown key or a value that does not fit."""
    check_key(key, where)
    group = group_of(key)
    accepted = kinds(hints_of(group)[key])
    literal = str in accepted and default_of(group, key) is not None  # a path may be called none
    if type(None) in accepted and (value is None or (not literal and str(value).lower() in ("none", "null"))):
        return None
    if key == "resume_from_checkpoint" and isinstance(value, bool):  # true is the last checkpoint, as in Trainer.train
        return value
    try:
        return validate(group, key, value)
    except ValueError as error:
        accepts_text = isinstance(value, bool) and str in kinds(hints_of(group)[key])
        quote = f"; in quotes, '{'yes' if value else 'no'}', it is text" if accepts_text else ""
        default = default_of(group, key)
        raise RecipeError(f"{key} is {value!r} in {where}; {error} (default: {default!r}){quote}") from None


def check_key(key: Any, where: str) -> None:
    """Raises RecipeError for a name that is no field, with the nearest one."""
    if key in REFUSED:
        raise RecipeError(f"{key} is not accepted in {where}: {REFUSED[key]}")
    if key not in all_fields():
        meant = {**{name: name for name in all_fields()}, **HINTS, **ALIASES}
        near = [meant[name] for name in ([key] if key in meant else nearest(str(key), meant))]
        hint = f"did you mean {near[0]!r}?" if near else "`hf-essl pretrain --help` lists the keys"
        raise RecipeError(f"unknown key {str(key)!r} in {where}; {hint}")


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`--field value…` words as converted values by field.

    Forms: `--field value`, `--field=value`, `--flag`, `--list_field 1.0 0.1`, `--mapping_field "{a: 1}"`. Dashes and
    underscores are equal, and the last of two equal fields wins.
    """
    found: dict[str, list[str]] = {}
    key, accepts_more = None, False
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            key = name.replace("-", "_")
            key = ALIASES.get(key, key)
            check_key(key, COMMAND_LINE)
            found[key] = [value] if equals else []
            accepts_more = not equals
        elif key is None or not accepts_more:
            raise RecipeError(f"unexpected word {word!r} on {COMMAND_LINE}; an override is --field value")
        else:
            found[key].append(word)
    return {key: _convert_words(key, values) for key, values in found.items()}


def _convert_words(key: str, words: list[str]) -> Any:
    """The value of the words after `--key`; text is taken literally, only lists and mappings are YAML."""
    accepted = kinds(hints_of(group_of(key))[key])
    if not words and (bool in accepted or key == "resume_from_checkpoint"):
        return True
    if not words or "" in words:
        raise RecipeError(f"--{key} has no value on {COMMAND_LINE}; write --{key} VALUE")
    if len(words) > 1 and list not in accepted:
        raise RecipeError(f"--{key} has {len(words)} values on {COMMAND_LINE}; it takes one")
    read = [_read_word(key, word, accepted) for word in words]
    if len(words) > 1 or (list in accepted and str not in accepted and not isinstance(read[0], list)):
        return convert(key, None if read == ["none"] else read, COMMAND_LINE)
    return convert(key, read[0], COMMAND_LINE)


def _read_word(key: str, word: str, accepted: set[Any]) -> Any:
    """A word as what the types of its field ask for: list, mapping, true or false, number, or the text itself."""
    truth = {"true": True, "false": False}
    if key == "resume_from_checkpoint" or bool in accepted:
        return truth.get(word.lower(), word)
    if accepted & {list, dict} and word[:1] in ("[", "{"):
        try:
            return yaml.safe_load(word)
        except yaml.YAMLError:
            return word
    if accepted & {int, float, list} and str not in accepted:
        for number in (int, float):
            try:
                return number(word)
            except ValueError:
                continue
        return truth.get(word.lower(), word)
    return word
