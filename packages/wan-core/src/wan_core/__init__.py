"""Wan 2.1 and 2.2 video generation. Importing this brings in the errors only; the parts are in the subpackages."""

from wan_core.errors import BackendError, CheckpointError, ConfigError, MediaError, RequestError, WanError

__all__ = ["BackendError", "CheckpointError", "ConfigError", "MediaError", "RequestError", "WanError"]
