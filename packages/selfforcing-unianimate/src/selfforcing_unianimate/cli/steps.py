"""The student's steps as an option."""

from typing import Any

import click

from selfforcing_unianimate.distillation.settings import parse_steps
from wan_core import ConfigError


class Steps(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """Times before the shift with commas between them."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return parse_steps(value) if isinstance(value, str) else value
        except ConfigError as error:
            self.fail(str(error), param, ctx)
