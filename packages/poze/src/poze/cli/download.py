"""``poze-download``: the weights of Pi3 and of Wan2.2 TI2V-5B, each at a revision of its own."""

from pathlib import Path

import click

from poze.guidance import PI3_ID
from poze.presets import POZE_5B
from wan_core import RequestError
from wan_core.cli import PLACE, ErrorReporting, fetch_model, main_of, reporter, version_option

PI3_FILES = ("model.safetensors",)


@click.command("poze-download", cls=ErrorReporting, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--pi3-id", default=PI3_ID, show_default=True, help="The repository of Pi3.")
@click.option(
    "--pi3-dir", type=PLACE, default=Path("pi3_ckpt"), show_default=True,
    help="Where Pi3 goes.",
)  # fmt: skip
@click.option("--wan-id", default="Wan-AI/Wan2.2-TI2V-5B", show_default=True, help="The repository of Wan.")
@click.option(
    "--wan-dir", type=PLACE, default=Path("Wan2.2-TI2V-5B"), show_default=True,
    help="Where Wan goes.",
)  # fmt: skip
@click.option("--token", help="For gated repositories; better in HF_TOKEN.")
@click.option("--revision", help="A branch, tag or commit of both repositories.")
@click.option("--pi3-revision", help="Of Pi3's alone.")
@click.option("--wan-revision", help="Of Wan's alone.")
@click.option("--quiet", is_flag=True, help="No progress and no notes.")
def download(
    pi3_id: str,
    pi3_dir: Path,
    wan_id: str,
    wan_dir: Path,
    token: str | None,
    revision: str | None,
    pi3_revision: str | None,
    wan_revision: str | None,
    quiet: bool,
) -> None:
    """Fetch the weights of Pi3 and of Wan2.2 TI2V-5B, only the files that are needed, checked.

    Folders are taken from where you are. Pi3's weights are CC BY-NC 4.0: not for commercial use.
    """
    if pi3_dir.absolute() == wan_dir.absolute():
        raise RequestError(f"--pi3-dir and --wan-dir are the same folder {pi3_dir}; each model needs its own")
    for option, repository in (("--pi3-id", pi3_id), ("--wan-id", wan_id)):
        if repository.count("/") != 1:
            raise RequestError(f"{option} is OWNER/NAME, got {repository!r}")
    fetch_model(pi3_id, pi3_dir, revision=pi3_revision or revision, token=token, include=PI3_FILES, quiet=quiet)
    is_known = wan_id == POZE_5B.repository
    fetch_model("ti2v-5B" if is_known else wan_id, wan_dir, revision=wan_revision or revision, token=token, quiet=quiet)
    reporter(quiet)(f"poze-infer --wan-ckpt-dir {wan_dir} --pi3-checkpoint {pi3_dir} --image PICTURE")


download.params.append(version_option("poze", "poze-download"))
main = main_of(download)
