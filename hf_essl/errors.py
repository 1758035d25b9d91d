"""Exceptions that stand for the end of a run, apart from mistakes in the input (ValueError)."""


class Diverged(RuntimeError):
    """The run was stopped, since no further step could have saved it."""


class Interrupted(KeyboardInterrupt):
    """The run was stopped by a signal, after a checkpoint."""
