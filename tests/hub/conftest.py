"""The client of huggingface_hub pointed at the server of this folder, with a token and an empty cache of its own."""

import types

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from tests.hub.server import HubServer


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on this machine, which the client takes for the Hub."""
    with HubServer() as server:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "empty-cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no-login"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setattr(_http, "time", types.SimpleNamespace(sleep=lambda seconds: None))  # between its retries
        _http.close_session()
        yield server
        _http.close_session()
        assert not [line for line in server.unknown if "agent-harnesses" not in line], "the server lacks an endpoint"
