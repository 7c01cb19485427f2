"""``mi2v``: the seed's own command line. ``wan generate mi2v-5B`` takes the same options with the model's defaults."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import click

from wan_core import cli
from wan_core.cli import build_command, main_of, reporter, version_option
from wan_core.presets import Preset
from wan_mi2v.presets import MI2V_5B, TINY_MI2V

SCRIPT_5B = replace(
    MI2V_5B,
    sampling=replace(MI2V_5B.sampling, width=704, height=1280, num_frames=81, num_inference_steps=40),
)
"""What the script means by open values, where it differs from the model's own: 704*1280, 81 frames, 40 steps."""

HELP = (
    "Make a video in which several pictures stay fixed. With --ckpt-dir by mi2v-5B, whose defaults are 704*1280, "
    "81 frames, 40 steps, shift 5, unipc and guidance 5; otherwise by the bundled tiny model with its own."
)


def run(preset: Preset, values: Mapping[str, Any]) -> None:
    """Run the 5B model when its weights are named, else the tiny one."""
    if values["ckpt_dir"] is not None:
        cli.run_generate(preset, values)
        return
    reporter(values["quiet"])("note: no --ckpt-dir, so the bundled tiny model makes this video")
    cli.run_generate(TINY_MI2V, values)


def make_command() -> click.Command:
    """The ``mi2v`` command."""
    command = build_command(SCRIPT_5B, name="mi2v", run=run)
    command.help = HELP
    command.params.append(version_option("wan-mi2v", "mi2v"))
    return command


mi2v = make_command()
main = main_of(mi2v)
