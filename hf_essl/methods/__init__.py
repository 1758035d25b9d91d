"""The methods by name. To add one, write a file in this folder and add a line to this table."""

from hf_essl.methods.backbone import check_backbone
from hf_essl.methods.base import METHODS, Pair, SSLModel, check_method, method_name
from hf_essl.methods.byol import BYOL
from hf_essl.methods.dino import DINO
from hf_essl.methods.distill import Distill
from hf_essl.methods.lejepa import LeJEPA
from hf_essl.methods.mocov2 import MoCoV2
from hf_essl.methods.simclr import SimCLR
from hf_essl.methods.simsiam import SimSiam

METHODS["simsiam"] = SimSiam
METHODS["byol"] = BYOL
METHODS["simclr"] = SimCLR
METHODS["mocov2"] = MoCoV2
METHODS["dino"] = DINO
METHODS["lejepa"] = LeJEPA
METHODS["distill"] = Distill

__all__ = ["METHODS", "Pair", "SSLModel", "check_backbone", "check_method", "method_name"]
