"""The names that users import, and that importing the package is cheap."""

import dataclasses
import inspect
import random
import subprocess
import sys
import typing
from collections.abc import Sequence

import pytest
import torch

import hf_essl
from hf_essl.config.fields import kinds
from tests.fault_inputs import _limits, _outside

NAMES = """
    SSLTrainer SSLTrainingArguments SSLModel Views SuperProgressiveCallback HardAugment F1CLR knn_accuracy linear_probe
    lr_range_test estimate_cost export_backbone push_backbone load_backbone draw_neighbors write_card CardCallback
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_public_name(name):
    public = getattr(hf_essl, name)
    assert callable(public) and public.__doc__
    assert name in hf_essl.__all__ and name in dir(hf_essl)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'SLTrainer'"):
        hf_essl.SLTrainer  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, hf_essl; print([m for m in ('torch', 'transformers', 'timm', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def is_number(hint):
    """Whether a type is that of one number, which may be None."""
    return kinds(hint) & {int, float} and kinds(hint) <= {int, float, type(None)} and not containers(hint)


def containers(hint):
    parts = [] if typing.get_origin(hint) is typing.Literal else typing.get_args(hint)
    own = {typing.get_origin(hint)} & {tuple, list, Sequence}
    return own.union(*(containers(part) for part in parts))


def numbers():
    """(name, function, parameter, limits of its type) of every number that a public function or class takes."""
    for name in hf_essl.__all__:
        public = getattr(hf_essl, name)
        if dataclasses.is_dataclass(public):
            continue  # their `check` and `__post_init__` have tests of their own
        function = public.__init__ if inspect.isclass(public) else public
        for parameter, hint in typing.get_type_hints(function, include_extras=True).items():
            if parameter != "return" and is_number(hint):
                yield name, public, parameter, _limits(hint)


NUMBERS = list(numbers())
WITHOUT_A_RANGE = {("Views", "seed"), ("CurveScheduler", "last_epoch")}


def test_every_number_of_the_api_has_a_range():
    assert {(name, parameter) for name, _, parameter, limits in NUMBERS if not limits} == WITHOUT_A_RANGE
    assert len(NUMBERS) > 15


@pytest.mark.parametrize(("name", "public", "parameter", "limits"), [entry for entry in NUMBERS if entry[3]])
def test_a_number_out_of_its_range_is_one_line(name, public, parameter, limits):
    """It is refused before anything else is looked at: the other arguments are no real ones."""
    required = {p.name: 1 for p in inspect.signature(public).parameters.values() if p.default is p.empty}
    outside = [_outside(limit, random.Random(seed)) for limit in limits for seed in range(4)]
    for wrong in [*outside, float("nan"), True]:
        arguments = required | {parameter: wrong}
        with pytest.raises(ValueError, match=rf"^{parameter} is {wrong}; ") as error:
            public(**arguments)
        assert "\n" not in str(error.value)


def jitter(**values):
    return hf_essl.Views(hf_essl.ViewArguments(**values))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scheduler((2, 3)), "momentum_range is"),
        (lambda: scheduler((0.9, 0.8)), "momentum_range is"),
        (lambda: scheduler((0.9, 1.0)), "momentum_range is"),
        (lambda: scheduler((-0.1, 0.9)), "momentum_range is"),
        (lambda: scheduler((0.9,)), "momentum_range is"),
        (lambda: scheduler((0.8, float("nan"))), "momentum_range is"),
        (lambda: hf_essl.F1CLR(float("inf"), 1), "length is"),
        (lambda: hf_essl.F1CLR(10, 10), "warmup is"),
        (lambda: jitter(jitter=[0.4, 0.4]), "jitter is"),
        (lambda: jitter(blur_p=[0.1, 0.2, 0.3]), "blur_p is"),
        (lambda: jitter(crop_scale=[0.5]), "crop_scale is"),
        (lambda: jitter(jitter_p=1.5), "jitter_p is"),
        (lambda: hf_essl.Views(mean=(0.5, 0.5)), "mean is"),
        (lambda: hf_essl.Views(std=(0.5, 0.0, 0.5)), "std is"),
        (lambda: hf_essl.Views(std=(0.5, float("nan"), 0.5)), "std is"),
        (lambda: hf_essl.SSLTrainingArguments(output_dir="x", adam_beta1=1.0).check(), "adam_beta1 is"),
        (lambda: hf_essl.SSLTrainingArguments(output_dir="x", adam_beta2=-0.1).check(), "adam_beta2 is"),
    ],
)
def test_several_numbers_out_of_their_range_are_one_line(call, message):
    with pytest.raises(ValueError, match=f"^{message} ") as error:
        call()
    assert "\n" not in str(error.value)


def scheduler(momenta):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    return hf_essl.CurveScheduler(optimizer, hf_essl.F1CLR(10, 2), momenta)


def test_an_unknown_argument_names_its_function():
    with pytest.raises(TypeError, match=r"linear_probe\(\) got an unexpected keyword argument 'lr'"):
        hf_essl.linear_probe(1, 2, 3, 4, lr=0.1)
