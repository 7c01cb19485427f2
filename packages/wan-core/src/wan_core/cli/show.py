"""``wan show FILE``: how a file was made, and the command that makes it again. Nothing in the file is ever run."""

import json
from pathlib import Path
from typing import Any

import click

from wan_core.cli.command_line import command_line
from wan_core.cli.group import PLACE, ErrorReporting
from wan_core.errors import RequestError
from wan_core.files import WEIGHT_ENDINGS
from wan_core.media import Provenance, plain_text, read_provenance


@click.command(cls=ErrorReporting)
@click.argument("file", type=PLACE)
@click.option("--json", "as_json", is_flag=True, help="Print the record and the command as JSON.")
def show(file: Path, as_json: bool) -> None:
    """Print how FILE was made, and the command that makes it again.

    FILE is an .mp4, .gif, .webp, .png or .npz that wan or a project on it wrote; frames/%04d.png stands for its first
    picture. Of what another command than 'wan generate' made, such as poses, only the record is printed.
    """
    if file.suffix.lower() in WEIGHT_ENDINGS and file.is_file():
        raise RequestError(f"{plain_text(file)} is a file of weights; 'wan inspect' says what it is and how it is used")
    provenance = read_provenance(file)
    command = None if " " in provenance.preset else command_line(provenance)
    if as_json:
        click.echo(json.dumps({**json.loads(provenance.to_json()), "command": command}, indent=2))
        return
    for name, value in rows(provenance):
        click.echo(f"{plain_text(name):<20} {plain_text(value)}")
    if command is None:
        return
    click.echo("\nThe command that makes it again (input files and weights are named without their folders):")
    click.echo(command)
    if any(plain_text(text) != text for text in provenance.settings.values() if isinstance(text, str)):
        click.echo("\nnote: a text of the record holds line breaks or control characters; the command leaves them out")


def rows(provenance: Provenance) -> list[tuple[str, str]]:
    """The record as lines of name and value, the prompt first."""
    settings = dict(provenance.settings)
    maker = "command" if " " in provenance.preset else "preset"
    lines: list[tuple[str, Any]] = [(maker, provenance.preset)]
    lines += [("prompt", settings.pop("prompt"))] if "prompt" in settings else []
    lines += [*settings.items(), *provenance.record.items(), ("wan-core", provenance.tool_version)]
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in lines]
