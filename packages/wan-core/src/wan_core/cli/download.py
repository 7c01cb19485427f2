"""``wan download PRESET|REPO``: the weights of a model, only what it needs, checked."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import NoReturn

import click

from wan_core.cli.group import PLACE, ErrorReporting
from wan_core.cli.progress import byte_progress, reporter
from wan_core.errors import RequestError, Terminated
from wan_core.files import gigabytes
from wan_core.hub import MANIFEST_NAME, DownloadPlan, FetchedFile, HubName, download_files, open_hub, plan_download
from wan_core.media import plain_text
from wan_core.presets import Preset, get_preset

_DIT_FILES = ("config.json", "diffusion_pytorch_model*.safetensors")
_DIT_INDEX = "diffusion_pytorch_model*.safetensors.index.json"


@click.command(cls=ErrorReporting)
@click.argument("model", metavar="PRESET|OWNER/NAME")
@click.option(
    "--from",
    "source",
    type=click.Choice(["huggingface", "modelscope"]),
    default="huggingface",
    show_default=True,
    help="The hub.",
)
@click.option("--revision", help="A branch, tag or commit; the hub's main one by default.")
@click.option("--token", help="For private and gated models; better in HF_TOKEN or MODELSCOPE_API_TOKEN.")
@click.option("--local-dir", type=PLACE, help="Default: ./NAME of the repository.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only files like this; may be given several times.")
@click.option("--json", "as_json", is_flag=True, help="Print what was fetched as JSON.")
@click.option("--quiet", is_flag=True, help="No progress and no notes.")
def download(
    model: str,
    source: HubName,
    revision: str | None,
    token: str | None,
    local_dir: Path | None,
    include: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Fetch the weights of a model, check them, and write their manifest.

    PRESET is a name from 'wan presets' and brings only the files that it needs; OWNER/NAME is any repository. Files
    that are there and right are not fetched again.
    """
    preset = None if "/" in model else get_preset(model)
    plan, fetched = fetch_model(
        model, local_dir, source=source, revision=revision, token=token, include=include, quiet=quiet
    )
    if as_json:
        click.echo(json.dumps(record(plan, fetched), indent=2, ensure_ascii=False))
        return
    folder = plan.folder
    blind = sum(not file.digest for file in plan.files)
    checked = "all checked" if not blind else f"{blind} of them by size alone, for the hub tells no hash"
    click.echo(f"{folder}: {len(fetched)} files, {gigabytes(plan.total)}, {checked}; {MANIFEST_NAME} written")
    if preset is not None and not include:
        log = reporter(quiet)
        if preset.besides:
            log(f"note: {preset.besides}")
        log(f"wan generate {preset.name} --ckpt-dir {folder}")


def fetch_model(
    model: str,
    local_dir: Path | None = None,
    *,
    source: HubName = "huggingface",
    revision: str | None = None,
    token: str | None = None,
    include: Sequence[str] = (),
    quiet: bool = False,
) -> tuple[DownloadPlan, Sequence[FetchedFile]]:
    """Fetch a preset's files or those of a repository like ``include``, with licence, sizes and progress.

    Files that are there and right are not fetched again. Raises what `wan_core.hub.plan_download` raises; Ctrl-C ends
    the command with a sentence.
    """
    preset = None if "/" in model else get_preset(model)
    repository = model if preset is None else _repository(preset)
    folder = local_dir or Path(repository.rpartition("/")[2])
    patterns: tuple[str, ...] = tuple(include)
    optional: tuple[str, ...] = ()
    if preset is not None and not include:
        patterns, optional = files_of(preset), companions_of(preset)
    try:
        plan = plan_download(
            open_hub(source, token), repository, folder, revision=revision, include=patterns, optional=optional
        )
        announce(plan, reporter(quiet))
        return plan, download_files(plan, byte_progress("fetching", quiet=quiet))
    except KeyboardInterrupt as interrupt:
        _interrupted(folder, interrupt)


def _repository(preset: Preset) -> str:
    if preset.repository is None:
        where = "come with the package" if preset.bundled else "are published nowhere that is known"
        raise RequestError(f"the weights of {preset.name} {where}; there is nothing to download")
    return preset.repository


def files_of(preset: Preset) -> tuple[str, ...]:
    """Patterns for the files that a preset reads; each must be there. A part without an ending is a folder.

    Optional parts are published elsewhere.
    """
    patterns = []
    for part in preset.parts:
        if part.is_optional:
            continue
        if part.family.is_denoiser:
            patterns += [f"{part.file}/{name}".lstrip("/") for name in _DIT_FILES]
        elif part.source is None:
            patterns.append(part.file if Path(part.file).suffix else f"{part.file}/*")
    return tuple(dict.fromkeys(patterns))


def companions_of(preset: Preset) -> tuple[str, ...]:
    """Patterns for files that go along where a repository has them: the index of shards, a task's LoRA, the licence."""
    loras = [field.metadata["lora"] for field in fields(preset.task.request_type) if "lora" in field.metadata]
    return (*(f"{part.file}/{_DIT_INDEX}".lstrip("/") for part in preset.dits), *loras, "LICENSE*")


def announce(plan: DownloadPlan, log: Callable[[str], None]) -> None:
    """Say what is fetched, from where, under which licence, and how much of it is there."""
    listing = plan.listing
    licence = listing.licence or "not stated there; see the page of the model"
    log(f"{listing.repository} at {plain_text(listing.revision)} from {plan.hub.host}")
    log(f"licence of the weights: {licence}")
    already = f", {gigabytes(plan.present)} of it are there" if plan.present else ""
    log(f"{len(plan.files)} files, {gigabytes(plan.total)}{already}; into {plan.folder}")


def record(plan: DownloadPlan, fetched: Sequence[FetchedFile]) -> dict[str, object]:
    """What was fetched, for machines."""
    return {
        "repository": plan.listing.repository,
        "revision": plan.listing.revision,
        "from": plan.hub.name,
        "licence": plan.listing.licence,
        "folder": str(plan.folder),
        "bytes": plan.total,
        "received": sum(file.size for file in fetched if file.state == "downloaded"),
        "files": [asdict(file) for file in fetched],
    }


def _interrupted(folder: Path, interrupt: KeyboardInterrupt) -> NoReturn:
    click.echo(f"interrupted; files that are whole stay in {folder}: the same command fetches the rest", err=True)
    raise click.exceptions.Exit(143 if isinstance(interrupt, Terminated) else 130) from interrupt
