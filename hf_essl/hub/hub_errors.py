"""The errors of the Hub in one sentence that says what to do."""

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

from hf_essl.common import one_line

LOG_IN = "run `hf auth login`, or set HF_TOKEN to a token with write access"
REFUSALS = {
    401: f"the Hub does not accept the token for {{repo_id}} ({{answer}}); {LOG_IN}",
    403: "the Hub does not let this token write to {repo_id} ({answer}); use a token with write access, or a repo_id "
    "under your own name",
    404: "the Hub does not show {repo_id} to this token ({answer}); check repo_id and the token",
}


class HubError(ValueError):
    """The Hub does not accept a push; the message says why, and what to do."""


class HubUnreachable(HubError):
    """The Hub does not accept a push now: no connection, offline mode, or a server error (429, 5xx)."""


@contextmanager
def plain_errors(repo_id: str) -> Iterator[None]:
    """Turns exceptions of huggingface_hub into a `HubError`."""
    try:
        yield
    except HubError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # RuntimeError: around a failed upload
        raise explain(error, repo_id) from error


def explain(error: BaseException, repo_id: str) -> HubError:
    """The `HubError` for an exception of huggingface_hub; a `HubUnreachable` if a later attempt may succeed."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OfflineModeIsEnabled):
            return HubUnreachable(f"HF_HUB_OFFLINE is set, so {repo_id} cannot be pushed to the Hub; unset it")
        if isinstance(cause, LocalTokenNotFoundError):
            return HubError(f"there is no token for {repo_id} on the Hub; {LOG_IN}")
        if isinstance(cause, HFValidationError):
            return HubError(f"repo_id is {repo_id!r}; use user/name with letters, digits, '-', '_' and '.'")
        if isinstance(cause, HfHubHTTPError):
            return _explain_status(cause, repo_id)
        if isinstance(cause, (HTTPError, ConnectionError, TimeoutError)):
            return HubUnreachable(
                f"the Hub at {constants.ENDPOINT} cannot be reached ({_short(cause)}); try again with a connection"
            )
        if isinstance(cause, json.JSONDecodeError):  # a proxy's page; huggingface_hub did not check the status
            return HubUnreachable(f"the answer of the Hub at {constants.ENDPOINT} is unreadable; try again later")
        cause = cause.__cause__
    return HubError(f"{repo_id} was not pushed: {_short(error)}")


def _explain_status(error: HfHubHTTPError, repo_id: str) -> HubError:
    status = error.response.status_code
    message = error.response.headers.get("X-Error-Message") or error.server_message or ""
    answer = f"{status}, {_short(message)}" if message and "<" not in message else f"{status}"  # not a proxy's page
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{repo_id} on the Hub does not have this revision ({answer}); choose a branch")
    if status in (408, 429) or status >= 500:
        return HubUnreachable(f"the Hub does not accept {repo_id} now ({answer}); try again later")
    return HubError(
        REFUSALS.get(status, "the Hub rejects {repo_id} ({answer})").format(repo_id=repo_id, answer=answer)
    )


def _short(text: object) -> str:
    """One line of at most 200 characters."""
    line = one_line(text)
    return line if len(line) <= 200 else f"{line[:199]}…"
