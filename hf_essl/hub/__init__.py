"""Backbones that others load."""

from hf_essl.hub.export import export_backbone

__all__ = ["export_backbone"]
