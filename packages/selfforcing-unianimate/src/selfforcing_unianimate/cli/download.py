"""``sfu download``: everything that runs and trains here, each repository into a folder of its own, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from wan_core.cli import PLACE, ErrorReporting, debug_option, fetch_model, reporter


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


_UNIANIMATE = "ZheWang123/UniAnimate-DiT"
DOWNLOADS = {
    "base": Download(
        title="Wan2.1 1.3B, which is trained further", model="t2v-1.3B", folder="Wan2.1-T2V-1.3B", size="about 17 GB"
    ),
    "student": Download(
        title="Self-Forcing, after distillation and after its first stage",
        model="gdhe17/Self-Forcing",
        # The repository keeps them in a folder of this name; in a folder of that name they would lie two deep.
        folder="Self-Forcing",
        files=("checkpoints/self_forcing_dmd.pt", "checkpoints/ode_init.pt"),
    ),
    "clip": Download(
        title="the CLIP image encoder, beside the 1.3B network",
        model="Wan-AI/Wan2.1-I2V-14B-480P",
        folder="Wan2.1-T2V-1.3B",
        files=("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",),
    ),
    "teacher": Download(
        title="Wan2.1 I2V 14B, the teacher's base", model="i2v-14B-720P", folder="Wan2.1-I2V-14B-720P",
        size="about 82 GB",
    ),
    "unianimate": Download(
        title="UniAnimate's LoRA and pose encoder",
        model=_UNIANIMATE,
        folder="UniAnimate-DiT",
        files=("UniAnimate-Wan2.1-14B-Lora-12000.ckpt",),
    ),
    "detectors": Download(
        title="the two detectors of poses", model=_UNIANIMATE, folder="detectors",
        files=("dw-ll_ucoco_384.onnx", "yolox_l.onnx"),
    ),
}  # fmt: skip


@click.command(cls=ErrorReporting, params=[debug_option()])
@click.option(
    "--dir", "folder", type=PLACE, default=Path("checkpoints"), show_default=True,
    help="Where the folders go.",
)  # fmt: skip
@click.option("--only", type=click.Choice(list(DOWNLOADS)), multiple=True, help="One of them; several times for more.")
@click.option("--dry-run", is_flag=True, help="Only list what would be fetched, and into which folders.")
@click.option("--token", help="For gated repositories; better in HF_TOKEN.")
@click.option("--quiet", is_flag=True, help="No progress and no notes.")
def download(folder: Path, only: tuple[str, ...], dry_run: bool, token: str | None, quiet: bool) -> None:
    """Fetch the weights of the student, the teacher and the detectors, only the files that are needed, checked.

    Files that are there and right are not fetched again.
    """
    chosen = {name: each for name, each in DOWNLOADS.items() if name in only or not only}
    if dry_run:
        for name, each in chosen.items():
            click.echo(f"{name}: {each.title}: {each.model}, {each.size}, into {folder / each.folder}")
            for file in each.files:
                click.echo(f"    {folder / each.folder / file}")
        return
    for each in chosen.values():
        fetch_model(each.model, folder / each.folder, token=token, include=each.files, quiet=quiet)
    reporter(quiet)(f"all there: {', '.join(chosen)}")
