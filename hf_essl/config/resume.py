"""Resuming with other settings: each field acts from here on, must not change, or does not matter."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from hf_essl.config.fields import default_of, fields_of
from hf_essl.config.values import GROUPS

IMAGES = "images_per_step"  # the product of the batch size, the accumulation and the processes


class Change(NamedTuple):
    """A field that a resumed run has changed."""

    step: int  # the new value acts on the steps after this one
    field: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.before} to step {self.step}, then {self.after}"


def resume_rules() -> dict[str, str]:
    """The rule of every field of a recipe: acts, fixed or free, see `on_resume`."""
    return {name: rule for group in GROUPS.values() for name, rule in group.resume_rules.items()}  # type: ignore[attr-defined]


def settings_hash(settings: Mapping[str, Any]) -> str:
    """A hash of the settings that must not change."""
    rules = resume_rules()
    fixed = {key: value for key, value in settings.items() if rules.get(key, "fixed") == "fixed"}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True, default=str).encode()).hexdigest()[:16]


def changes_since(before: Mapping[str, Any], now: Mapping[str, Any], step: int, where: str) -> list[Change]:
    """What a run resumed at `step` changes, of the fields that may change.

    Args:
        before, now: the settings of the checkpoint and of this run; a field that is missing has its default.
        where: names the checkpoint in the error.

    Raises:
        ValueError: if a field differs that must not change, with both values.
    """
    changes = []
    for key, rule, old, new in differences(before, now):
        if rule == "fixed":
            raise ValueError(
                f"{key} is {new!r}, but {where} was trained with {old!r}; it must not change on resume: set {key} to "
                f"{old!r}, or start over in another --output_dir"
            )
        changes.append(Change(step, key, old, new))
    return changes


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """The fields that differ and matter: name, rule, both values. A field that is missing has its default."""
    for key, rule in [*resume_rules().items(), (IMAGES, "fixed")]:
        old, new = value_of(before, key), value_of(now, key)
        if rule != "free" and not _same(key, old, new):
            yield key, rule, old, new


def as_comments(changes: Sequence[Change]) -> str:
    """The changes as lines at the head of a recipe.yaml."""
    return "".join(f"# changed on resume: {' '.join(str(change).split())}\n" for change in changes)


def value_of(settings: Mapping[str, Any], key: str) -> Any:
    """The value of a field in flat settings, its default where they do not have it."""
    if key == "data_seed" and settings.get(key) is None:
        key = "seed"  # which is its default; a data_seed of 0 is not among flat settings
    if key in settings:
        return settings[key]
    group = next((group for group in GROUPS.values() if key in fields_of(group)), None)
    default = None if group is None else default_of(group, key)
    return getattr(default, "value", default)


def _same(key: str, old: Any, new: Any) -> bool:
    """Whether two values of a field mean the same: empty ones, and a data set in another folder, do."""
    if key == "dataset" and isinstance(old, str) and isinstance(new, str):
        old, new = PurePath(old).name, PurePath(new).name  # a folder may have moved
    if old in (None, "", [], {}) and new in (None, "", [], {}):
        return True
    return json.loads(json.dumps(old, default=str)) == json.loads(json.dumps(new, default=str))
