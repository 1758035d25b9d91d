"""Every declared range is enforced: in a recipe, on the command line and in Python."""

import dataclasses
import typing

import pytest
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen

from hf_essl.config import DataArguments, ModelArguments, SSLTrainingArguments, ViewArguments
from hf_essl.config.fields import hints_of
from hf_essl.config.values import GROUPS, RecipeError
from hf_essl.recipe import load_recipe, unbuilt_training


def constraints(hint):
    """The constraints of a type hint and of its union members, with the type that they apply to."""
    if typing.get_origin(hint) is typing.Annotated:
        inner, *metadata = typing.get_args(hint)
        flat = [one for entry in metadata for one in getattr(entry, "metadata", [entry])]
        yield from ((inner, one) for one in flat)
        yield from ()
    elif typing.get_origin(hint) not in (list, typing.Literal):
        for part in typing.get_args(hint):
            yield from constraints(part)


def just_outside(inner, constraint):
    step = 1 if inner is int else 0.25
    match constraint:
        case Ge(low):
            return low - step
        case Gt(bound) | Lt(bound):
            return bound
        case Le(high):
            return high + step
        case MinLen(length):
            return [0.5] * (length - 1)
        case MaxLen(length):
            return [0.5] * (length + 1)


CASES = [
    (group, key, just_outside(inner, constraint))
    for group in GROUPS.values()
    for key in group.__annotations__
    for inner, constraint in constraints(hints_of(group)[key])
]


def test_the_ranges_are_found():
    assert len(CASES) > 50
    numeric = {
        (group, key)
        for group in GROUPS.values()
        for key in group.__annotations__
        if {int, float} & {hints_of(group)[key], *typing.get_args(hints_of(group)[key])}
    }
    assert numeric <= {(group, key) for group, key, _ in CASES}, "a numeric field has no range"


@pytest.mark.parametrize(("group", "key", "value"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_value_outside_of_its_range_is_refused_everywhere(group, key, value, tmp_path):
    (tmp_path / "r.yaml").write_text(f"{key}: {value}\n")
    with pytest.raises(RecipeError, match=rf"^{key} is .*r\.yaml; .*default") as in_file:
        load_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("seed: 0\n")
    words = [str(one) for one in value] if isinstance(value, list) else [str(value)]
    if words:
        with pytest.raises(RecipeError, match=rf"^{key} is .*the command line; "):
            load_recipe(tmp_path / "r.yaml", [f"--{key}", *words])
    built = unbuilt_training({key: value}) if group is SSLTrainingArguments else group(**{key: value})
    with pytest.raises(ValueError, match=rf"^{key} is .*; .*default") as in_python:
        built.check()
    assert "\n" not in str(in_file.value) and "\n" not in str(in_python.value)


@pytest.mark.parametrize("group", [ModelArguments, DataArguments, ViewArguments])
def test_the_defaults_are_in_their_ranges(group):
    group().check()
    unbuilt_training({}).check()
    assert all(field.metadata["help"] for field in dataclasses.fields(group))
