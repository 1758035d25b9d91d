"""No test reaches the network or the user's caches: set before anything reads these variables."""

import atexit
import os
import shutil
import socket
import tempfile
from pathlib import Path

_CACHES = Path(tempfile.mkdtemp(prefix="hf-essl-tests-"))
atexit.register(shutil.rmtree, _CACHES, ignore_errors=True)

for _name in (
    "HF_DATASETS_CACHE",
    "HF_HUB_CACHE",
    "HF_ASSETS_CACHE",
    "HF_MODULES_CACHE",
    "HF_TOKEN",
    "XDG_CACHE_HOME",
):
    os.environ.pop(_name, None)
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HOME=str(_CACHES / "huggingface"),
    TORCH_HOME=str(_CACHES / "torch"),
    MPLCONFIGDIR=str(_CACHES / "matplotlib"),
    MPLBACKEND="Agg",
)

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)  # as many tests at once as there are cores


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """A connection to anything but this machine is an error, not a slow test."""
    connect = socket.socket.connect

    def local_only(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test reached for the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
