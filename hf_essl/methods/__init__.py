"""The methods by name. A further method is one file in this folder and one line in this table."""

from hf_essl.methods.base import SSLModel
from hf_essl.methods.byol import BYOL
from hf_essl.methods.dino import DINO
from hf_essl.methods.mocov2 import MoCoV2
from hf_essl.methods.simclr import SimCLR
from hf_essl.methods.simsiam import SimSiam

METHODS: dict[str, type[SSLModel]] = {
    "simsiam": SimSiam,
    "byol": BYOL,
    "simclr": SimCLR,
    "mocov2": MoCoV2,
    "dino": DINO,
}


def method_name(model: SSLModel) -> str:
    """A model's method by its name; its class's name where the table does not hold it."""
    return next((name for name, known in METHODS.items() if type(model) is known), type(model).__name__.lower())
