"""The ``download`` command of a project whose weights lie in several repositories, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from wan_core.cli.download import fetch_model
from wan_core.cli.group import PLACE, ErrorReporting
from wan_core.cli.options import debug_option
from wan_core.cli.progress import reporter


@dataclass(frozen=True, kw_only=True)
class Download:
    """``model`` is a preset or a repository, of which ``files`` are needed (none: what the preset reads).

    ``folder`` is where they go, ``size`` what is known of their size before the hub is asked.
    """

    title: str
    model: str
    folder: str
    files: tuple[str, ...] = ()
    size: str = "size not known here"


def downloads_command(downloads: Mapping[str, Download], help: str) -> click.Command:
    """The command that fetches all of them, or those named by ``--only``, only the files that are needed, checked."""

    @click.command("download", cls=ErrorReporting, params=[debug_option()], help=help)
    @click.option(
        "--dir", "folder", type=PLACE, default=Path("checkpoints"), show_default=True,
        help="Where the folders go.",
    )  # fmt: skip
    @click.option(
        "--only", type=click.Choice(list(downloads)), multiple=True, help="One of them; several times for more."
    )
    @click.option("--dry-run", is_flag=True, help="Only list what would be fetched, and into which folders.")
    @click.option("--token", help="For gated repositories; better in HF_TOKEN.")
    @click.option("--quiet", is_flag=True, help="No progress and no notes.")
    def download(folder: Path, only: tuple[str, ...], dry_run: bool, token: str | None, quiet: bool) -> None:
        chosen = {name: each for name, each in downloads.items() if name in only or not only}
        if dry_run:
            for name, each in chosen.items():
                click.echo(f"{name}: {each.title}: {each.model}, {each.size}, into {folder / each.folder}")
                for file in each.files:
                    click.echo(f"    {folder / each.folder / file}")
            return
        for each in chosen.values():
            fetch_model(each.model, folder / each.folder, token=token, include=each.files, quiet=quiet)
        reporter(quiet)(f"all there: {', '.join(chosen)}")

    return download
