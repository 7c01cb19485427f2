"""The errors of the Wan workspace.

One family: the place that knows the reason raises, the command line turns it into one sentence and an exit code.
A message says what is wrong, the value, and what would be right:
``num_frames must be 4n+1, got 80; nearest are 77 and 81``.
"""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


class WanError(Exception):
    """Base of every error that a user can cause or mend. ``exit_code`` is the process exit status.

    ``process`` names the one of several that met it while they worked together.
    """

    exit_code = 1
    process = ""


class RequestError(WanError):
    """The request itself is wrong: a missing, malformed or contradictory value."""

    exit_code = 2


class ConfigError(WanError):
    """Options, model dims or run settings that cannot work, alone or together."""

    exit_code = 2


class CheckpointError(WanError):
    """Weights or their folder are missing, damaged, of another model, or unsafe to read."""

    exit_code = 3


class MediaError(WanError):
    """A picture, video, audio file or the disk failed: unreadable, unwritable, full."""

    exit_code = 4


class BackendError(WanError):
    """An optional package or a piece of hardware that the request needs is not there."""

    exit_code = 5


class LostProcessError(BackendError):
    """Another process of the run has ended or cannot be reached; why, that one or who has started it may have said."""
