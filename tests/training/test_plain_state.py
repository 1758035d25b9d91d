"""States as safetensors: what is written is read again, and a hostile file runs nothing."""

import os
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn

from hf_essl.training.plain_state import read_state, write_state
from hf_essl.training.safe_checkpoints import random_state, set_random_state


def same(first, second):
    """Whether two nested states have equal types, values and, for tensors, memory layouts."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and first.stride() == second.stride() and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_an_optimizer_is_read_as_it_was_written(optimizer, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    trained = optimizer(network.parameters(), lr=0.1, **({"momentum": 0.9} if optimizer is torch.optim.SGD else {}))
    network(torch.randn(2, 3, 8, 8)).square().sum().backward()
    trained.step()
    write_state(tmp_path / "x", trained.state_dict())
    assert same(read_state(tmp_path / "x"), trained.state_dict())
    channels_last = next(iter(trained.state_dict()["state"].values()))
    assert any(value.ndim == 4 and not value.is_contiguous() for value in channels_last.values())


def test_any_nesting_is_read_as_it_was_written(tmp_path):
    shared = torch.arange(6).view(2, 3)
    state = {
        0: (1, 2.5, None, True, "text"),
        "more": [{}, (), [], {"tensor": "a key of the format", "dict": 3, ("a", 1): "tuple"}],
        "tensors": [shared, shared.T, shared[:, 1], torch.tensor(7, dtype=torch.bfloat16), torch.zeros(0, 3)],
        "numbers": [float("inf"), 2**70, -0.0],
    }
    write_state(tmp_path / "x", state)
    found = read_state(tmp_path / "x")
    assert found["tensors"][2].tolist() == [1, 4] and found["tensors"][1].stride() == (1, 3)
    state["tensors"][2], found["tensors"][2] = None, None  # a column of a matrix becomes contiguous
    assert same(found, state)


def test_what_is_not_plain_is_refused_when_it_is_written(tmp_path):
    for value in (object(), {1, 2}, np.float32(1), nn.Linear(1, 1)):
        with pytest.raises(TypeError, match=r"neither a tensor nor a plain value"):
            write_state(tmp_path / "x", {"value": value})


def test_the_random_generators_continue(tmp_path):
    def draw():
        return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()

    random.gauss(0, 1)  # Python and NumPy now hold the second half of a pair of normal numbers
    np.random.randn()
    write_state(tmp_path / "x", random_state(torch.device("cpu")))
    expected = draw()
    draw()
    set_random_state(read_state(tmp_path / "x"), torch.device("cpu"))
    assert draw() == expected


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"{}", "pickle", "no tree", "deep"])
def test_another_file_is_one_line(content, tmp_path):
    path, mark = tmp_path / "x", tmp_path / "mark"
    if content == "pickle":
        path.write_bytes(pickle.dumps(Hostile(mark)))
    elif isinstance(content, str):
        from safetensors.torch import save_file

        tree = {} if content == "no tree" else {"tree": "[" * 100_000 + "]" * 100_000}
        save_file({"0": torch.ones(1)}, path, metadata=tree)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read \(.*; resume another checkpoint") as error:
        read_state(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path)) and not mark.exists()
