"""Fields of a recipe: help, default and range in one declaration, checked for YAML, command line and Python."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, ParamSpec, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

Given = ParamSpec("Given")
Returned = TypeVar("Returned")

Count = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Part = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
PerView = Annotated[list[Probability], Field(min_length=1, max_length=2)]  # one for both views, or one for each


def option(text: str, default: Any = None, *, factory: Any = None) -> Any:
    """A dataclass field with its help text."""
    source = {"default": default} if factory is None else {"default_factory": factory}
    return dataclasses.field(**source, metadata={"help": text})


def on_resume(acts: str = "", fixed: str = "", free: str = "") -> dict[str, str]:
    """The rule of each field of a group for a resumed run whose value is another than its checkpoint's.

    Args:
        acts: names of fields that may change; the new value acts from the checkpoint's step on, and is recorded.
        fixed: that must not change, because the weights, the images or the results of the run depend on them.
        free: that change nothing of the run's result.
    """
    return {name: rule for rule, names in (("acts", acts), ("fixed", fixed), ("free", free)) for name in names.split()}


@cache
def fields_of(group: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(group)}


@cache
def hints_of(group: type) -> dict[str, Any]:
    """The types of a group's fields, with their ranges; `inherited_ranges` has those of fields of a base class."""
    return typing.get_type_hints(group, include_extras=True) | dict(getattr(group, "inherited_ranges", {}))


def default_of(group: type, key: str) -> Any:
    field = fields_of(group)[key]
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


@cache
def _adapter(group: type, key: str) -> TypeAdapter:
    return TypeAdapter(hints_of(group)[key], config=ConfigDict(allow_inf_nan=False))


def validate(group: type, key: str, value: Any) -> Any:
    """`value` as the type of the field `key`. Raises ValueError, without the name, if it does not fit."""
    hint = hints_of(group)[key]
    if bool not in kinds(hint) and any(isinstance(one, bool) for one in _flat(value)):
        raise ValueError(f"expected {_article(hint)}, not true or false")  # Python counts True as the integer 1
    try:
        return _adapter(group, key).validate_python(value)
    except ValidationError as error:
        raise ValueError(_in_words(error)) from None


def check_field(group: type, key: str, value: Any) -> Any:
    """As `validate`, but the error has the field's name, its value and its default."""
    try:
        return validate(group, key, value)
    except ValueError as error:
        raise ValueError(f"{key} is {value!r}; {error} (default: {default_of(group, key)!r})") from None


def check_fields(values: Any, group: type | None = None) -> None:
    """Checks each of the group's fields that it declares a range for, as `check_field` does."""
    group = group or type(values)
    for key in (*group.__annotations__, *getattr(group, "inherited_ranges", ())):
        check_field(group, key, getattr(values, key))


def checked(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
    """A function or `__init__` that raises ValueError for an argument outside of its declared range, with its name."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapped(*args: Given.args, **given: Given.kwargs) -> Returned:
        try:
            bound = signature.bind(*args, **given)
        except TypeError:
            return function(*args, **given)  # its own error has its name
        bound.arguments |= check_arguments_of(function, bound.arguments)
        return function(*bound.args, **bound.kwargs)

    return wrapped


def check_arguments_of(function: Callable[..., Any], given: typing.Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of these that have declared types, as those types. Raises ValueError with name and default."""
    hints, parameters = typing.get_type_hints(function, include_extras=True), inspect.signature(function).parameters
    found = {}
    for name, hint in hints.items():
        simple = {bool, int, float, str, list, dict, type(None)}
        if name not in given or not kinds(hint) <= simple:
            continue
        value = given[name]
        try:
            if isinstance(value, bool) and bool not in kinds(hint):
                raise ValueError(f"expected {_article(hint)}, not true or false")
            found[name] = TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
        except ValidationError as error:
            default = parameters[name].default
            shown = "" if default is inspect.Parameter.empty else f" (default: {default!r})"
            raise ValueError(f"{name} is {value!r}; {_in_words(error)}{shown}") from None
        except ValueError as error:
            raise ValueError(f"{name} is {value!r}; {error}") from None
    return found


def kinds(hint: Any) -> set[Any]:
    """The plain types in a type hint, a Literal's by its values."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return kinds(parts[0])
    if origin is typing.Literal:
        return {type(choice) for choice in parts}
    if origin in (list, dict, None):
        return {origin or hint}
    return set().union(*(kinds(part) for part in parts))


def _in_words(error: ValidationError) -> str:
    """What pydantic expects, one clause per member of a union."""
    clauses = []
    for problem in error.errors(include_url=False):
        place = [str(part) for part in problem["loc"] if isinstance(part, int)]
        where = f"item {place[0]} " if place else "it "
        clauses.append(problem["msg"].replace("Input ", where, 1) if "Input" in problem["msg"] else problem["msg"])
    return " or ".join(dict.fromkeys(clauses))


def _article(hint: Any) -> str:
    names = {int: "an integer", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    return " or ".join(sorted(names.get(kind, "none") for kind in kinds(hint)))


def _flat(value: Any) -> list[Any]:
    return [one for part in value for one in _flat(part)] if isinstance(value, list) else [value]
