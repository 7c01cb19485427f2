"""The ``wan`` command. Subcommands are imported when called, so that ``wan --help`` needs no torch.

For the scripts of projects: :func:`build_command` makes a preset's command, :func:`run_generate` carries it out.
"""

from typing import TYPE_CHECKING

from wan_core.cli.group import PLACE, ErrorReporting, LazyCommand, LazyGroup, exit_of, main_of, version_option
from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.cli.convert import write_again, writing_options
    from wan_core.cli.download import fetch_model
    from wan_core.cli.downloads import Download, downloads_command
    from wan_core.cli.generate import build_command, run_generate
    from wan_core.cli.jobs import Job, file_words, plan_jobs
    from wan_core.cli.making import runtime_of
    from wan_core.cli.options import (
        FINITE,
        SHARE,
        ListCommand,
        ListOption,
        debug_option,
        own_device,
        share_of_work,
    )
    from wan_core.cli.processes import processes_of
    from wan_core.cli.progress import progress_unless, reporter
    from wan_core.cli.train import carry_out_command, run_settings, train_options
else:
    __getattr__, __dir__ = on_demand(__name__)

COMMANDS = {
    "cache": LazyCommand("wan_core.cli.cache:cache", "Encode videos and captions once, for training."),
    "convert": LazyCommand("wan_core.cli.convert:convert", "Write weights in another layout or dtype."),
    "download": LazyCommand("wan_core.cli.download:download", "Fetch the weights of a model, resumed and checked."),
    "extend-prompt": LazyCommand(
        "wan_core.cli.extend_prompt:extend_prompt", "Print a prompt as a language model extends it."
    ),
    "generate": LazyCommand("wan_core.cli.generate:generate", "Make a video from a prompt, and from pictures."),
    "inspect": LazyCommand("wan_core.cli.inspect:inspect", "Say what a file or folder of weights is."),
    "merge-lora": LazyCommand("wan_core.cli.merge_lora:merge_lora", "Write weights with LoRAs merged in."),
    "prepare-animate": LazyCommand(
        "wan_core.cli.prepare_animate:prepare_animate", "Turn a video and a picture into what animate-14B takes."
    ),
    "presets": LazyCommand("wan_core.cli.presets:presets", "List the models and what they need."),
    "show": LazyCommand("wan_core.cli.show:show", "Print how a file was made, and the command that makes it again."),
    "train": LazyCommand("wan_core.cli.train:train", "Finetune a model, or a LoRA of it, on a folder of videos."),
    "verify": LazyCommand("wan_core.cli.verify:verify", "Check a model's files against their SHA-256 manifest."),
}

wan = LazyGroup("wan", COMMANDS, help="Wan 2.1 and 2.2 video generation.", package="wan-core")
main = main_of(wan)

__all__ = [
    "COMMANDS",
    "FINITE",
    "PLACE",
    "SHARE",
    "Download",
    "ErrorReporting",
    "Job",
    "LazyCommand",
    "LazyGroup",
    "ListCommand",
    "ListOption",
    "build_command",
    "carry_out_command",
    "debug_option",
    "downloads_command",
    "exit_of",
    "fetch_model",
    "file_words",
    "main",
    "main_of",
    "own_device",
    "plan_jobs",
    "processes_of",
    "progress_unless",
    "reporter",
    "run_generate",
    "run_settings",
    "runtime_of",
    "share_of_work",
    "train_options",
    "version_option",
    "wan",
    "write_again",
    "writing_options",
]
