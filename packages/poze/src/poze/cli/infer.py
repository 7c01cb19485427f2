"""``poze-infer``: the seed's command line. ``wan generate poze-5B`` takes the same options."""

from collections.abc import Mapping
from typing import Any

import click

from poze.presets import POZE_5B, TINY_POZE, is_tiny
from wan_core import RequestError, cli
from wan_core.cli import build_command, main_of, reporter, version_option
from wan_core.presets import Preset

DEFAULT_PROMPT = "A drone flythrough of a canyon"
CONFIGS = {"ti2v-5B": POZE_5B}

HELP = (
    "Make a video from a picture: Pi3 looks at it, and its features guide Wan2.2 TI2V-5B. Pi3's points, depth and "
    "cameras come with the video (--save-pi3). Without --wan-ckpt-dir the bundled tiny models run."
)


def run(preset: Preset, values: Mapping[str, Any]) -> None:
    """Run TI2V-5B when its weights are named, else the tiny model."""
    config = values["wan_config"]
    if config not in CONFIGS:
        raise RequestError(f"--wan-config must be {' or '.join(CONFIGS)}, got {config!r}: the others take no picture")
    chosen = CONFIGS[config]
    if values["ckpt_dir"] is None:
        reporter(values["quiet"])("note: no --wan-ckpt-dir, so the bundled tiny models make this video")
    if is_tiny(values["ckpt_dir"]):
        chosen = TINY_POZE
    cli.run_generate(chosen, values)


def make_command() -> click.Command:
    """The ``poze-infer`` command: the shared options under the seed's names."""
    command = build_command(POZE_5B, name="poze-infer", run=run)
    command.help = HELP
    for param in command.params:
        if isinstance(param, click.Option) and param.name == "ckpt_dir":
            param.opts[:0] = ["--wan-ckpt-dir"]
        elif param.name == "prompt":
            param.default = DEFAULT_PROMPT
    command.params.append(click.Option(["--wan-config"], default="ti2v-5B", show_default=True, help="The Wan model."))
    command.params.append(version_option("poze", "poze-infer"))
    return command


infer = make_command()
main = main_of(infer)
