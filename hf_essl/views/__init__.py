"""Augmented views on the device."""

from hf_essl.views.params import ViewParams
from hf_essl.views.sampler import LOCAL
from hf_essl.views.views import Views

__all__ = ["LOCAL", "ViewParams", "Views"]
