"""The errors of pi3. ``exit_code`` is what the command ends with; messages name the value and the remedy."""


class Pi3Error(Exception):
    """Base of every error that a user can cause or mend."""

    exit_code = 1


class RequestError(Pi3Error, ValueError):
    """An input or a value cannot work: a wrong shape, a missing file, contradictory options."""

    exit_code = 2


class ConfigError(Pi3Error, ValueError):
    """Model dims that cannot work, alone or together."""

    exit_code = 2


class CheckpointError(Pi3Error):
    """Weights are missing, damaged, of another model, or unsafe to read."""

    exit_code = 3


class MediaError(Pi3Error):
    """A file or the disk failed: unreadable, unwritable, full."""

    exit_code = 4


class BackendError(Pi3Error):
    """An optional package or a piece of hardware that the request needs is not there."""

    exit_code = 5
