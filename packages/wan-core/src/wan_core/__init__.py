"""Wan 2.1 and 2.2 video generation. Importing this package imports no torch; its subpackages hold the work."""

from wan_core.errors import BackendError, CheckpointError, ConfigError, MediaError, RequestError, WanError

__all__ = ["BackendError", "CheckpointError", "ConfigError", "MediaError", "RequestError", "WanError"]
