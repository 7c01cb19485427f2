"""The ``pi3`` command. Subcommands are imported when called, so that ``pi3 --help`` needs no torch."""

from typing import Any

import click

from pi3.errors import Pi3Error
from wan_core.cli import LazyCommand, LazyGroup, main_of

DEBUG_KEY = "pi3.debug"

COMMANDS = {
    "reconstruct": LazyCommand("pi3.cli.reconstruct:reconstruct_command", "Pictures or a video to a 3D scene file."),
    "depth": LazyCommand("pi3.cli.maps:depth_command", "Depth maps, as 16-bit PNG and in colour."),
    "poses": LazyCommand("pi3.cli.maps:poses_command", "Where the cameras stood, and their intrinsics."),
    "view": LazyCommand("pi3.cli.view:view_command", "A video of a PLY file or of a sequence of them."),
    "inspect": LazyCommand("pi3.cli.weights:inspect_command", "What a weight file holds."),
    "download": LazyCommand("pi3.cli.weights:download_command", "Fetch the published weights."),
}


class Pi3Group(LazyGroup):
    """Turns the errors of pi3, besides those of wan-core, into a sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; with ``--debug`` the original error comes through."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            if ctx.meta.get(DEBUG_KEY) and error.__cause__ is not None:
                raise error.__cause__ from None
            raise
        except Pi3Error as error:
            if ctx.meta.get(DEBUG_KEY):
                raise
            reported = click.ClickException(str(error))
            reported.exit_code = error.exit_code  # type: ignore[misc]  # click declares a class variable, and reads it so
            raise reported from error


pi3 = Pi3Group("pi3", COMMANDS, help="Pi3: 3D geometry from unordered pictures.", package="pi3")
main = main_of(pi3)

__all__ = ["COMMANDS", "Pi3Group", "main", "pi3"]
