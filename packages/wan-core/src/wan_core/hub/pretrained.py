"""Networks that transformers reads, from a folder or a repository: those of known kinds, and only whole ones."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from wan_core.errors import CheckpointError, ConfigError, RequestError
from wan_core.files import plain_text, read_text

LIBRARY_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError)
"""What transformers raises for files that it cannot read."""


def load_pretrained(model: str, kinds: Mapping[str, str], *, what: str, lacks: Collection[str] = ()) -> Any:
    """The network of a folder or repository, in its own dtype, in eval mode.

    ``kinds`` maps ``model_type`` of config.json to the name of transformers' class, ``what`` names such models, and
    ``lacks`` are the weights that a file may be without, as nothing here uses them. Raises CheckpointError for what
    cannot be read or is not whole, ConfigError for models of other kinds.
    """
    import transformers
    from safetensors import SafetensorError

    shown = plain_text(model)
    # Its bars would stand in between our own, with --quiet too.
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = transformers.AutoConfig.from_pretrained(model)
    except LIBRARY_ERRORS as error:
        raise CheckpointError(
            f"{shown} is no folder or repository of {what} ({first_line(error)}); check its name"
        ) from error
    kind = getattr(transformers, kinds[_known(config.model_type, kinds, shown, what)])
    try:
        network, found = kind.from_pretrained(
            model, dtype="auto", use_safetensors=True, output_loading_info=True, low_cpu_mem_usage=True
        )
    except (*LIBRARY_ERRORS, SafetensorError) as error:
        raise CheckpointError(f"{shown} cannot be read ({first_line(error)}); fetch it again") from error
    # transformers fills what a file lacks with random numbers and a warning.
    unknown = {*map(str, found["missing_keys"]), *(str(each[0]) for each in found["mismatched_keys"])}
    missing = sorted(unknown.difference(lacks))
    if missing:
        raise CheckpointError(
            f"{shown} lacks {len(missing)} weights of its network, such as {missing[0]}; fetch it again"
        )
    return network.eval()


def folder_kind(folder: Path, kinds: Collection[str], *, what: str) -> str:
    """The ``model_type`` of a folder's config.json, which must be one of ``kinds``; no weight is read.

    Raises CheckpointError for a folder without one, ConfigError for models of other kinds.
    """
    shown = plain_text(folder)
    try:
        config = json.loads(read_text(folder / "config.json"))
    except (RequestError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown} is no folder of {what} ({first_line(error)}); check its name") from error
    return _known(config.get("model_type") if isinstance(config, dict) else None, kinds, shown, what)


def _known(kind: Any, kinds: Collection[str], shown: str, what: str) -> str:
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{shown} is a {plain_text(kind)[:80]}; {what} is one of {', '.join(kinds)}")
    return kind


def load_beside(model: str, kind: str, what: str, **options: Any) -> Any:
    """What transformers' class ``kind`` (AutoTokenizer, AutoImageProcessor) reads beside weights.

    ``what`` names it in the message. Raises CheckpointError.
    """
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(model, **options)
    except LIBRARY_ERRORS as error:
        raise CheckpointError(f"{plain_text(model)} has no {what} ({first_line(error)}); copy its files") from error


def first_line(error: BaseException) -> str:
    """The beginning of a library's message."""
    return plain_text(str(error).strip().partition("\n")[0])[:160] or type(error).__name__
