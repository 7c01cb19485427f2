"""``wan verify DIR``: every file of a model against its SHA-256 manifest."""

from pathlib import Path

import click

from wan_core.cli.group import PLACE, ErrorReporting
from wan_core.cli.progress import byte_progress
from wan_core.hub import MANIFEST_NAME, verify_folder, write_manifest


@click.command(cls=ErrorReporting)
@click.argument("folder", metavar="DIR", type=PLACE)
@click.option("--write", is_flag=True, help="Write the manifest from the files as they are now.")
@click.option("--quiet", is_flag=True, help="No progress.")
def verify(folder: Path, write: bool, quiet: bool) -> None:
    """Check the files in DIR against their manifest, which 'wan download' or --write has left there.

    Every missing, extra, short or changed file is named, with exit code 3. 'sha256sum -c' reads the manifest, too.
    """
    progress = byte_progress("hashing", quiet=quiet)
    if write:
        entries = write_manifest(folder, progress)
        click.echo(f"{folder / MANIFEST_NAME}: {len(entries)} files written down")
        return
    entries = verify_folder(folder, progress)
    click.echo(f"{folder}: all {len(entries)} files are as the manifest says")
