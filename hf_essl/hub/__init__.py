"""Backbones that others load."""

from hf_essl.hub.export import export_backbone
from hf_essl.hub.push import push_backbone

__all__ = ["export_backbone", "push_backbone"]
