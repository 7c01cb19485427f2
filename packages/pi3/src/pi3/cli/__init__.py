"""The ``pi3`` command. Subcommands are imported when called, so that ``pi3 --help`` needs no torch."""

from wan_core.cli import LazyCommand, LazyGroup, main_of

COMMANDS = {
    "reconstruct": LazyCommand("pi3.cli.reconstruct:reconstruct_command", "Pictures or a video to a 3D scene file."),
    "depth": LazyCommand("pi3.cli.maps:depth_command", "Depth maps, as 16-bit PNG and in colour."),
    "poses": LazyCommand("pi3.cli.maps:poses_command", "Where the cameras stood, and their intrinsics."),
    "view": LazyCommand("pi3.cli.view:view_command", "A video of a PLY file or of a sequence of them."),
    "inspect": LazyCommand("pi3.cli.weights:inspect_command", "What a weight file holds."),
    "download": LazyCommand("pi3.cli.weights:download_command", "Fetch the published weights."),
}

pi3 = LazyGroup("pi3", COMMANDS, help="Pi3: 3D geometry from unordered pictures.", package="pi3")
main = main_of(pi3)

__all__ = ["main"]
