"""The names that `optim` accepts: transformers' own, and LARS, which transformers does not have."""

import copy
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from transformers.training_args import OptimizerNames

from hf_essl.common import one_line, unknown

LARS = "lars"
SGD = OptimizerNames.SGD.value
OPTIMIZERS = [LARS, SGD, *(name.value for name in OptimizerNames if name is not OptimizerNames.SGD)]

_LARS_ARGS: dict[str, TypeAdapter] = {
    "trust_coeff": TypeAdapter(Annotated[float, Field(gt=0)]),
    "trust_clip": TypeAdapter(bool),
    "eps": TypeAdapter(Annotated[float, Field(ge=0)]),
    "dampening": TypeAdapter(Annotated[float, Field(ge=0)]),
    "nesterov": TypeAdapter(bool),
}


def check_optimizer(optim: str, optim_args: str | None) -> None:
    """Raises ValueError for an unknown optimizer, or for `optim_args` that LARS does not accept."""
    if optim not in OPTIMIZERS:
        raise ValueError(unknown("optim", str(optim), OPTIMIZERS))
    if optim == LARS:
        lars_settings(optim_args)


def check_optimizer_package(args: Any) -> None:
    """Raises ValueError for an optimizer whose package is not installed, or `optim_args` that it ignores."""
    if args.optim == LARS or (args.optim == SGD and not args.optim_args):
        return
    from transformers import Trainer  # takes seconds

    name = getattr(args.optim, "value", args.optim)
    try:
        _, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    except Exception as error:  # transformers raises many kinds, such as ImportError and AssertionError
        raise ValueError(f"optim is {name}, which cannot be used: {one_line(error)}") from error
    if args.optim_args:
        without = copy.copy(args)
        without.optim_args = None
        if Trainer.get_optimizer_cls_and_kwargs(without)[1] == settings:
            raise ValueError(f"optim_args is {args.optim_args!r}, which {name} ignores; remove it")


def lars_settings(optim_args: str | None) -> dict[str, Any]:
    """The arguments of timm's Lars in `optim_args`, such as `trust_coeff=0.02,nesterov=true`. Raises ValueError."""
    settings = {}
    for pair in filter(None, (optim_args or "").replace(" ", "").split(",")):
        name, _, value = pair.partition("=")
        if name not in _LARS_ARGS:
            raise ValueError(f"{unknown('optim_args', name, _LARS_ARGS)}; write NAME=VALUE,NAME=VALUE")
        try:
            settings[name] = _LARS_ARGS[name].validate_python(value)
        except ValidationError as error:
            raise ValueError(f"optim_args has {pair!r}; {name} {_expected(error)}") from None
    return settings


def _expected(error: ValidationError) -> str:
    return error.errors(include_url=False)[0]["msg"].replace("Input ", "", 1)
