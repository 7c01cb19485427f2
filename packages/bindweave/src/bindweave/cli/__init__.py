"""The ``bindweave`` command. Subcommands are imported when called, so that ``bindweave --help`` needs no torch."""

from wan_core.cli import LazyCommand, LazyGroup, main_of

COMMANDS = {
    "run": LazyCommand("bindweave.cli.run:run_command", "From a prompt and pictures to a video: all steps in one."),
    "refine": LazyCommand("bindweave.cli.refine:refine", "Let a language model write better prompts."),
    "extract": LazyCommand("bindweave.cli.extract:extract", "Keep a language model's states of prompts and pictures."),
    "infer": LazyCommand("bindweave.cli.infer:infer", "Make videos in which the subjects of pictures appear."),
    "train": LazyCommand("bindweave.cli.train:train", "Learn subjects from clips: all weights, or a LoRA."),
    "import-features": LazyCommand(
        "bindweave.cli.import_features:import_features", "Make a cache of the original's stored samples, to train on."
    ),
    "convert": LazyCommand("bindweave.cli.convert:convert", "Write the weights as MindSpeed-MM has them, or back."),
    "evaluate": LazyCommand("bindweave.cli.evaluate:evaluate", "Measure videos as OpenS2V-Eval does."),
    "download": LazyCommand("bindweave.cli.download:download", "Fetch the weights, resumed and checked."),
}

bindweave = LazyGroup(
    "bindweave", COMMANDS, help="Subject-to-video: who is in the pictures appears in the video.", package="bindweave"
)
main = main_of(bindweave)

__all__ = ["main"]
