"""``wan presets``: the models, their sizes and where their weights are."""

import json

import click

from wan_core.cli.group import ErrorReporting
from wan_core.presets import Preset, get_preset, list_presets


@click.command(cls=ErrorReporting)
@click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON.")
def presets(as_json: bool) -> None:
    """List the models and what they need."""
    models = [get_preset(name) for name in list_presets()]
    if as_json:
        click.echo(json.dumps([_row(model) for model in models], indent=2, ensure_ascii=False))
        return
    for model in models:
        weights = f"{model.disk_gb:g} GB, wan download {model.name}" if model.disk_gb else "weights in the package"
        click.echo(f"{model.name:<14} {model.summary}")
        click.echo(f"{'':<14} {_sizes(model)}; {model.sampling.num_frames} frames; {model.sampling.fps} fps; {weights}")


def _sizes(preset: Preset) -> str:
    return ", ".join(f"{width}*{height}" for width, height in preset.sizes)


def _row(preset: Preset) -> dict[str, object]:
    return {
        "name": preset.name,
        "summary": preset.summary,
        "sizes": [f"{width}*{height}" for width, height in preset.sizes],
        "num_frames": preset.sampling.num_frames,
        "fps": preset.sampling.fps,
        "steps": preset.sampling.num_inference_steps,
        "repository": preset.repository,
        "disk_gb": preset.disk_gb,
    }
