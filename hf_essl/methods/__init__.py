"""The methods by name. A further method is one file in this folder and one line in this table."""

from hf_essl.methods.base import SSLModel
from hf_essl.methods.simsiam import SimSiam

METHODS: dict[str, type[SSLModel]] = {
    "simsiam": SimSiam,
}
