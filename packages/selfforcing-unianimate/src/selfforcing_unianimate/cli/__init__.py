"""The ``sfu`` command. Subcommands are imported when called, so that ``sfu --help`` needs no torch."""

from wan_core.cli import LazyCommand, LazyGroup, main_of

COMMANDS = {
    "infer": LazyCommand(
        "selfforcing_unianimate.cli.infer:infer", "Make a causal video, block by block, of any length."
    ),
    "doctor": LazyCommand("selfforcing_unianimate.cli.doctor:doctor", "Say what this machine has and lacks."),
    "distill": LazyCommand(
        "selfforcing_unianimate.cli.distill:distill", "Distil a causal student from a teacher's targets and scores."
    ),
    "download": LazyCommand("selfforcing_unianimate.cli.download:download", "Fetch the weights, resumed and checked."),
    "pose": LazyCommand("selfforcing_unianimate.cli.pose:pose", "Take the motion out of a video, for a person."),
    "evaluate": LazyCommand("selfforcing_unianimate.cli.evaluate:evaluate", "Measure how well videos follow poses."),
    "merge-lora": LazyCommand("selfforcing_unianimate.cli.merge_lora:merge_lora", "Merge a LoRA into a model's files."),
    "make-targets": LazyCommand(
        "selfforcing_unianimate.cli.make_targets:make_targets", "Let the teacher make what a student learns from."
    ),
    "teacher": LazyCommand("selfforcing_unianimate.cli.teacher:teacher", "Move a picture by poses with the 14B model."),
}

sfu = LazyGroup("sfu", COMMANDS, help="Pose-driven video as a stream.", package="selfforcing-unianimate")
main = main_of(sfu)

__all__ = ["main"]
