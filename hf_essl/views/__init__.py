"""Augmented views on the device."""

from hf_essl.views.params import ViewParams
from hf_essl.views.views import Views

__all__ = ["ViewParams", "Views"]
