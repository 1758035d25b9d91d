"""Exceptions that stand for the end of a run, apart from mistakes in the input, and those of the Hub."""


class Diverged(RuntimeError):
    """The run was stopped, since no further step could have saved it."""


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal, after a checkpoint."""


class HubError(ValueError):
    """The Hub takes no push: what happened and what to do about it, in one sentence."""


class HubUnreachable(HubError):
    """The Hub takes no push now: no connection, offline mode, or trouble of its own (429, 5xx)."""
