"""The table of evaluation protocols, which the command, the model card and `evaluate_backbone` read.

To add a protocol, write a file with a settings dataclass, a function `run(task, settings)` and the `Protocol` of both,
as in `knn.py`, and add it to the table.
"""

from collections.abc import Mapping
from typing import Any

from hf_essl.common import unknown
from hf_essl.config.fields import check_field
from hf_essl.evaluation.finetune import FINETUNE
from hf_essl.evaluation.knn import KNN
from hf_essl.evaluation.linear import LINEAR

PROTOCOLS = {"knn": KNN, "linear": LINEAR, "finetune": FINETUNE}


def make_settings(protocol: str, values: Mapping[str, Any]) -> Any:
    """The settings of a protocol: these values, and defaults for the rest.

    Raises ValueError for an unknown protocol, an unknown setting or one of another protocol, and a value out of range.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(unknown("protocol", protocol, PROTOCOLS))
    known = PROTOCOLS[protocol]
    for name in values:
        if name in known.settings:
            continue
        owners = [other for other, entry in PROTOCOLS.items() if name in entry.settings]
        if not owners:
            raise ValueError(unknown(f"the setting of {protocol}", name, known.settings))
        raise ValueError(
            f"{name} is a setting of {' and '.join(owners)}, not of {protocol}, which accepts "
            f"{', '.join(known.settings)}; remove it, or choose another protocol"
        )
    group = known.settings_class
    return group(**{name: check_field(group, name, value) for name, value in values.items()})
