"""The names that users import, and that importing the package is cheap."""

import subprocess
import sys

import pytest

import hf_essl

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
