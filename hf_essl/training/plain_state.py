"""The state of an optimizer, a schedule or a random generator as safetensors: reading such a file executes no code.

Tensors are stored as such; the nesting and all plain values are JSON in the file's header.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from hf_essl.common import one_line
from hf_essl.methods.backbone import storable

TREE = "tree"  # key of the JSON in the header
TENSOR, DICT, TUPLE = "tensor", "dict", "tuple"  # the kinds of node that JSON does not have
PLAIN = (bool, int, float, str, type(None))


def write_state(path: Path, state: Any) -> None:
    """Writes tensors and plain values in any nesting of dicts, lists and tuples.

    Raises TypeError for anything else, such as a tensor of a quantizing library's own class.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_encode(state, tensors))
    safetensors.torch.save_file(storable(tensors), path, metadata={TREE: tree})


def read_state(path: Path) -> Any:
    """What `write_state` has written, on the CPU. Raises ValueError for any other file."""
    with explained(path), safe_open(path, "pt") as file:
        return _decode(json.loads(file.metadata()[TREE]), file)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """The block reads a file of a checkpoint and restores what it holds. Any failure is a ValueError of one line."""
    try:
        yield
    except Exception as error:  # what a damaged or hostile file raises has no limit
        reason = one_line(error).split(". ")[0]
        raise ValueError(f"{path} cannot be read ({reason[:200]}); resume another checkpoint") from error


def _encode(node: Any, tensors: dict[str, Tensor]) -> Any:
    if type(node) in (Tensor, torch.nn.Parameter):
        name, order = str(len(tensors)), _memory_order(node)
        tensors[name] = node.detach().permute(order)
        return {TENSOR: name, "order": order}
    if isinstance(node, dict):
        return {DICT: [[_encode(key, tensors), _encode(value, tensors)] for key, value in node.items()]}
    if isinstance(node, tuple):
        return {TUPLE: [_encode(value, tensors) for value in node]}
    if isinstance(node, list):
        return [_encode(value, tensors) for value in node]
    if type(node) in PLAIN:
        return node
    raise TypeError(f"a state holds {type(node).__name__}, which is neither a tensor nor a plain value")


def _decode(node: Any, file: Any) -> Any:
    if isinstance(node, list):
        return [_decode(value, file) for value in node]
    if not isinstance(node, dict):
        return node
    if TENSOR in node:
        value, order = file.get_tensor(node[TENSOR]), node["order"]
        return value.permute(sorted(range(len(order)), key=order.__getitem__)).clone()
    if TUPLE in node:
        return tuple(_decode(value, file) for value in node[TUPLE])
    return {_decode(key, file): _decode(value, file) for key, value in node[DICT]}


def _memory_order(value: Tensor) -> list[int]:
    """The dimensions from the outermost in memory to the innermost; fused optimizers need the state in that order."""
    strides = value.stride()
    return sorted(range(value.ndim), key=lambda dim: (-strides[dim], dim))
