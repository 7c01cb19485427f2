"""The ``wan`` command. Subcommands are imported when called, so that ``wan --help`` needs no torch."""

from wan_core.cli.group import LazyCommand, LazyGroup, main_of

COMMANDS = {
    "generate": LazyCommand("wan_core.cli.generate:generate", "Make a video from a prompt, and from pictures."),
    "presets": LazyCommand("wan_core.cli.presets:presets", "List the models and what they need."),
    "show": LazyCommand("wan_core.cli.show:show", "Print how a file was made, and the command that makes it again."),
}

wan = LazyGroup("wan", COMMANDS, help="Wan 2.1 and 2.2 video generation.", package="wan-core")
main = main_of(wan)

__all__ = ["COMMANDS", "LazyCommand", "LazyGroup", "main", "main_of", "wan"]
