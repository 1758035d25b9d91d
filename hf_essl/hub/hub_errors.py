"""What the Hub answers where it takes no push, in one sentence that says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)


class HubError(ValueError):
    """The Hub does not accept a push: what happened and what to do about it, in one sentence."""


class HubUnreachable(HubError):
    """The Hub does not accept a push now: no connection, offline mode, or an error of its own (429, 5xx)."""


LOG_IN = "run `hf auth login`, or set HF_TOKEN to a token with write access"


@contextmanager
def plain_errors(repo_id: str) -> Iterator[None]:
    """Turns what huggingface_hub raises inside into a `HubError`."""
    try:
        yield
    except HubError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # RuntimeError: around a failed upload
        raise explain(error, repo_id) from error


def explain(error: BaseException, repo_id: str) -> HubError:
    """The `HubError` for an exception of huggingface_hub; a `HubUnreachable` where trying again later may help."""
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return HubUnreachable(f"HF_HUB_OFFLINE is set, so nothing goes to {repo_id} on the Hub; unset it")
        if isinstance(cause, LocalTokenNotFoundError):
            return HubError(f"there is no token for {repo_id} on the Hub; {LOG_IN}")
        if isinstance(cause, HFValidationError):
            return HubError(f"repo_id is {repo_id!r}; it is user/name, of letters, digits, '-', '_' and '.'")
        if isinstance(cause, HfHubHTTPError):
            return _explain_status(cause, repo_id)
        if isinstance(cause, (HTTPError, ConnectionError, TimeoutError)):
            return HubUnreachable(
                f"the Hub at {constants.ENDPOINT} cannot be reached ({_line(cause)}); try again with a connection"
            )
        if isinstance(cause, json.JSONDecodeError):  # the page of a proxy, where huggingface_hub looks at no status
            return HubUnreachable(f"the Hub at {constants.ENDPOINT} gives no readable answer; try again later")
    return HubError(f"{repo_id} was not pushed: {_line(error)}")


def _explain_status(error: HfHubHTTPError, repo_id: str) -> HubError:
    status = error.response.status_code
    message = error.response.headers.get("X-Error-Message") or error.server_message or ""
    told = f"{status}, {_line(message)}" if message and "<" not in message else f"{status}"  # no proxy's page
    if status == 401:
        return HubError(f"the Hub does not accept the token for {repo_id} ({told}); {LOG_IN}")
    if status == 403:
        return HubError(
            f"the Hub does not let this token write to {repo_id} ({told}); take a token with write access, or a "
            f"repo_id under a name of your own"
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{repo_id} on the Hub has no such revision ({told}); take a branch")
    if status == 404:
        return HubError(f"the Hub shows this token no {repo_id} ({told}); check repo_id and the token")
    if status in (408, 429) or status >= 500:
        return HubUnreachable(f"the Hub does not take {repo_id} now ({told}); try again later")
    return HubError(f"the Hub refuses {repo_id} ({told})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _line(text: object) -> str:
    """One line of at most 200 characters."""
    line = " ".join(str(text).split()) or type(text).__name__
    return line if len(line) <= 200 else f"{line[:199]}…"
