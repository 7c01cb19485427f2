"""The ``poze`` command and the scripts ``poze-infer``, ``poze-finetune`` and ``poze-download``."""

from wan_core.cli import LazyCommand, LazyGroup, main_of

COMMANDS = {
    "infer": LazyCommand("poze.cli.infer:infer", "Make a video from a picture, guided by Pi3."),
    "finetune": LazyCommand("poze.cli.finetune:finetune", "Train the adapter and the transformer."),
    "download": LazyCommand("poze.cli.download:download", "Fetch the weights of Pi3 and TI2V-5B."),
    "view": LazyCommand("pi3.cli.view:view_command", "A video of a PLY file or of a sequence of them."),
}

poze = LazyGroup("poze", COMMANDS, help="3D-guided video: Pi3 guides Wan2.2 TI2V-5B.", package="poze")
main = main_of(poze)

__all__ = ["main"]
