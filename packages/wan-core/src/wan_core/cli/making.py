"""Making what was planned: the settings of the run, the plan of a dry run, then one video after the other."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import torch

from wan_core import media
from wan_core.checkpoints import LoRA
from wan_core.cli.extending import extend_jobs, with_prompt
from wan_core.cli.jobs import Job
from wan_core.cli.options import own_device
from wan_core.cli.processes import as_told, check_branches, processes_of
from wan_core.cli.progress import progress_unless, reporter
from wan_core.errors import CheckpointError, RequestError
from wan_core.files import gigabytes, plain_text
from wan_core.kept_clips import KeptClips
from wan_core.loading import RuntimeOptions, checkpoint_folder, load_pipeline
from wan_core.memory import describe, plan_memory
from wan_core.pipeline import Pipeline, SamplingOptions
from wan_core.presets import Preset
from wan_core.prompt_extend import Extender
from wan_core.run_options import check_guidance, check_loras, check_tea_cache, run_facts
from wan_core.runtime import (
    choose_attention_backend,
    resolve_device,
    resolve_dtype,
    results_of_all,
    working_together,
)
from wan_core.tasks import TaskInputs

Record = Callable[[], media.Provenance]
"""How a video is made, found out when it is asked for."""


def make_videos(
    preset: Preset,
    values: Mapping[str, Any],
    jobs: Sequence[Job],
    extender: Extender | None = None,
    write: Callable[..., Path] = media.write_video,
    is_made: Callable[[Path, media.Provenance], bool] | None = None,
    is_share: bool = False,
) -> None:
    """Check the run and load the model, then make the videos of ``jobs``, or print the plan of a dry run.

    ``extender`` writes their prompts before any weights are read; ``write`` takes what ``media.write_video`` takes;
    ``is_made`` says of an output and the record that it would have whether it is there as it would be made. Several
    processes divide the jobs among them, unless these are a process's share already (``is_share``).
    """
    runtime = runtime_of(preset, values)
    processes = runtime.processes
    shown = as_told(processes, values)
    log = reporter(shown["quiet"])
    check_run(preset, runtime, values, jobs, log)
    share = list if is_share else processes.own
    share(jobs)  # refuses, before there is a model, what the processes cannot divide
    missing = missing_weights(preset, values["ckpt_dir"]) if values["dry_run"] else None
    if missing is None:
        pipeline = load_pipeline(preset, values["ckpt_dir"], runtime)
        jobs = [replace(job, inputs=pipeline.check(job.inputs)) for job in jobs]
    if values["dry_run"]:
        made_by = None if missing is not None else pipeline
        show_plan(preset, jobs, runtime, shown, made_by, missing, extender)
        return
    with working_together(processes, pipeline.components.device):
        place(pipeline, share(jobs), log)
        jobs = share(extend_jobs(jobs, extender, str(runtime.device), log))
        to_make = _to_make(pipeline, jobs, is_made)
        jobs = [job for job, _ in to_make]
        for note in notes_on(jobs, pipeline):
            log(note)
        tell = reporter(as_told(processes, values, processes.is_first)["quiet"])
        if len(jobs) > 1:
            pipeline.encode_prompts([job.inputs for job in jobs])
        made = [_made(pipeline, job, record, shown, write, log, tell) for job, record in to_make]
        report_results(results_of_all(processes, made), shown)


def _to_make(
    pipeline: Pipeline, jobs: Sequence[Job], is_made: Callable[[Path, media.Provenance], bool] | None
) -> list[tuple[Job, Record]]:
    """The jobs whose outputs are not there as they would be made, with their records, which hash a file once."""
    records: list[Record] = [cache(partial(provenance_of, pipeline, job)) for job in jobs]
    pairs = list(zip(jobs, records, strict=True))
    if is_made is None:
        return pairs
    made_before = pipeline.together.as_first([is_made(job.output, record()) for job, record in pairs])
    return [pair for pair, is_there in zip(pairs, made_before, strict=True) if not is_there]


def report_results(results: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> None:
    """Print what was made as JSON, where that is asked for."""
    if values["as_json"]:
        click.echo(json.dumps(results, indent=2, ensure_ascii=False))


def check_run(
    preset: Preset, runtime: RuntimeOptions, values: Mapping[str, Any], jobs: Sequence[Job], log: Callable[[str], None]
) -> None:
    """What can be refused before files are opened. Raises RequestError and ConfigError."""
    check_loras(preset, runtime.loras)
    check_tea_cache(preset, runtime.sampling.tea_cache)
    check_guidance(preset, runtime.sampling.batched_guidance)
    check_branches(runtime.processes, [job.inputs.settings.guidance_scale for job in jobs])
    check_size(preset, values, log)


def _made(
    pipeline: Pipeline,
    job: Job,
    record: Record,
    values: Mapping[str, Any],
    write: Callable[..., Path],
    log: Callable[[str], None],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Make one video, and what is said of it in JSON; ``record`` says how, ``tell`` says that it is there."""
    started = time.monotonic()
    path = make_video(pipeline, job, record, values, write, log)
    seconds = time.monotonic() - started
    seed = job.inputs.request.seed
    tell(f"{path} (seed {seed}, {seconds:.1f} s)")
    result = {"path": str(path), "preset": pipeline.preset.name, "seed": seed, "seconds": round(seconds, 2)}
    return with_prompt(result, job)


def place(pipeline: Pipeline, jobs: Sequence[Job], log: Callable[[str], None]) -> None:
    """Decide where parts are during the videos, and say so where there is a device to be short of."""
    plan = pipeline.place([job.inputs for job in jobs])
    if plan is not None and pipeline.run is not None and plan.free is not None:
        log(f"memory: {describe(plan, pipeline.run)}")


def make_video(
    pipeline: Pipeline,
    job: Job,
    record: Record,
    values: Mapping[str, Any],
    write: Callable[..., Path],
    log: Callable[[str], None],
) -> Path:
    """Make one video with the sound and the record that go with it; of several processes the first one writes it."""
    progress = progress_unless(values["quiet"])
    if not pipeline.together.is_first:
        for _ in pipeline.stream(job.inputs, progress=progress, log=log):
            pass
        return job.output
    kept = kept_clips(pipeline, job, record, log)
    chunks = pipeline.stream(job.inputs, progress=progress, log=log, kept=kept)
    provenance = None if values["no_metadata"] else record()
    path = write(chunks, job.output, fps=job.inputs.settings.fps, provenance=provenance, **sound_of(job))
    if kept is not None:
        kept.remove()
    return path


def kept_clips(pipeline: Pipeline, job: Job, record: Record, log: Callable[[str], None]) -> KeptClips | None:
    """Where the finished clips of a video of several are kept until it is whole; says so."""
    task = pipeline.preset.task
    count = task.num_clips(job.inputs)
    if count == 1 or task.streams or media.is_pipe(str(job.output)):
        return None
    kept = KeptClips(job.output, record().fingerprint())
    done = min(kept.count, count)
    if done:
        log(f"note: {done} of {count} clips are there from a run that was stopped; it goes on after them")
    else:
        seed = job.inputs.settings.seed
        log(f"note: {count} clips are made; after a stop the same command, with --seed {seed}, goes on where it was")
    return kept


def sound_of(job: Job) -> dict[str, Any]:
    """What ``media.write_video`` is told of a video's sound, where there is one and its file can hold it."""
    has_sound = job.inputs.sound is not None and media.holds_sound(job.output)
    return {"audio": job.inputs.sound, "shortest": True} if has_sound else {}


def provenance_of(pipeline: Pipeline, job: Job) -> media.Provenance:
    """How a video was made, with what its prompt was before it was extended."""
    made = pipeline.provenance(job.inputs)
    if job.extension is None:
        return made
    return replace(made, record={**made.record, "prompt_extend": job.extension.record()})


def notes_on(jobs: Sequence[Job], pipeline: Pipeline | None) -> list[str]:
    """What a user should see before the work starts, each sentence once."""
    notes = [f"note: {note}" for job in jobs for note in job.inputs.notes]
    notes += [f"note: {plain_text(job.output)} is there and will be replaced" for job in jobs if _is_there(job.output)]
    notes += [
        f"note: {plain_text(job.output)} holds no sound; name an .mp4 for it"
        for job in jobs
        if job.inputs.sound is not None and not sound_of(job)
    ]
    if pipeline is not None:
        notes += [*pipeline.notes, *(f"note: {note}" for job in jobs for note in pipeline.prompt_notes(job.inputs))]
    return list(dict.fromkeys(notes))


def _is_there(output: Path) -> bool:
    return not media.is_pipe(str(output)) and os.path.lexists(
        output.with_name(output.name % 0) if media.is_pattern(output) else output
    )


def runtime_of(preset: Preset, values: Mapping[str, Any]) -> RuntimeOptions:
    """The run settings among the options, checked against this machine."""
    device = resolve_device(own_device(values["device"]))
    resolve_dtype(values["dtype"], device)
    choose_attention_backend(values["attention"], device)
    noise_device = resolve_device(values["noise_device"])
    return RuntimeOptions(
        device=str(device),
        dtype=values["dtype"],
        offload=True if values["offload"] == "blocks" else values["offload"],
        in_blocks=values["offload"] == "blocks",
        text_encoder_on_cpu=values["t5_cpu"],
        attention=values["attention"],
        vae_dtype=values["vae_dtype"],
        vae_tiling=values["vae_tiling"],
        mmap=values["mmap"],
        loras=_loras_of(preset, values),
        force_lora=values["force_lora"],
        parts=_places_of(preset, values),
        processes=processes_of(values),
        sampling=SamplingOptions(
            batched_guidance=values["cfg"] == "batched",
            noise_device=str(noise_device),
            tea_cache=values["tea_cache"],
        ),
    )


def _loras_of(preset: Preset, values: Mapping[str, Any]) -> tuple[LoRA, ...]:
    """Those of ``--lora``, and of the checkpoint's folder what flags of the task stand for, but for one of that name.

    Without a folder there is a plan alone. Raises ``CheckpointError`` for a file that is not there.
    """
    given: tuple[LoRA, ...] = values["loras"]
    wanted = [field for field in fields(preset.task.request_type) if "lora" in field.metadata and values[field.name]]
    for field in wanted:
        name = field.metadata["lora"]
        if any(lora.path.name == name for lora in given) or missing_weights(preset, values["ckpt_dir"]) is not None:
            continue
        path = checkpoint_folder(preset, values["ckpt_dir"]) / name
        if not path.is_file():
            option = field.metadata["option"][0]
            raise CheckpointError(
                f"{plain_text(path)} is not there, which {option} merges; fetch it with 'wan download {preset.name}', "
                f"name another place with --lora, or leave {option} out"
            )
        given = (*given, LoRA(path))
    return given


def _places_of(preset: Preset, values: Mapping[str, Any]) -> dict[str, str | Path]:
    """Where parts are taken from: ``--part``, or an option of the task that is for one part; the first given wins."""
    places: dict[str, str | Path] = dict(values["parts"])
    for field in fields(preset.task.request_type):
        place = values.get(field.name)
        if "part" in field.metadata and place is not None:
            places.setdefault(field.metadata["part"], place)
    return places


def check_size(preset: Preset, values: Mapping[str, Any], log: Callable[[str], None]) -> None:
    """Say when the size is not one that the model was trained for."""
    size = values["size"]
    if size is not None and tuple(size) not in preset.sizes:
        known = ", ".join(f"{width}*{height}" for width, height in preset.sizes)
        log(f"note: {preset.name} was trained for {known}; {size[0]}*{size[1]} may look worse")


def missing_weights(preset: Preset, folder: Path | None) -> str | None:
    """Why there is no folder of weights to look at, if none is given: a plan can be made without."""
    try:
        checkpoint_folder(preset, folder)
    except RequestError as error:
        return str(error)
    return None


def show_plan(
    preset: Preset,
    jobs: Sequence[Job],
    runtime: RuntimeOptions,
    values: Mapping[str, Any],
    pipeline: Pipeline | None,
    missing: str | None,
    extender: Extender | None,
) -> None:
    """Print what would happen; without a ``pipeline`` the sizes of parts are those of the released model.

    ``extender`` is what prompts are to be extended by.
    """
    for note in notes_on(jobs, pipeline):
        reporter(values["quiet"])(note)
    if not runtime.processes.tells:
        return
    dtype = resolve_dtype(runtime.dtype, resolve_device(runtime.device))
    configs = {} if pipeline is None else pipeline.components.configs
    memory = memory_rows(preset, runtime, pipeline, [job.inputs for job in jobs])
    rows = [
        {
            "preset": preset.name,
            **({"missing": missing} if missing else {"weights": str(checkpoint_folder(preset, values["ckpt_dir"]))}),
            "device": runtime.device,
            "dtype": str(dtype).removeprefix("torch."),
            **memory,
            "memory": {**memory["memory"], **kept_bytes(preset, configs, dtype, job)},
            **({"processes": str(runtime.processes)} if runtime.processes.world > 1 else {}),
            **({"lora": [str(lora) for lora in runtime.loras]} if runtime.loras else {}),
            **({"prompt_extend": dict(extender.facts)} if extender is not None else {}),
            **job.inputs.record(),
            **preset.task.describe(job.inputs),  # the size of the video, where the request's is an area
            "output": str(job.output),
        }
        for job in jobs
    ]
    if values["as_json"]:
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for row in rows:
        for name, value in row.items():
            click.echo(f"{name:<20} {value}")
        click.echo()


def kept_bytes(preset: Preset, configs: Mapping[str, Any], dtype: torch.dtype, job: Job) -> dict[str, str]:
    """The memory of what the network remembers of a video that it makes part by part."""
    kept = preset.task.kept_bytes(job.inputs, configs.get("dit", preset.dit), dtype.itemsize)
    return {"remembered": gigabytes(kept)} if kept else {}


def memory_rows(
    preset: Preset, runtime: RuntimeOptions, pipeline: Pipeline | None, videos: Sequence[TaskInputs[Any]]
) -> dict[str, Any]:
    """The bytes of weights by part, what each phase takes at most, and where parts are between phases."""
    if not videos:
        return {"memory": {}}
    run = run_facts(preset, runtime) if pipeline is None or pipeline.run is None else pipeline.run
    plan = (None if pipeline is None else pipeline.expected_memory(videos)) or plan_memory(run, videos, free=None)
    sizes = {
        f"{name} noise)".replace(" ", " (", 1) if name not in preset.part_names else name: gigabytes(size)
        for name, size in run.whole.items()
    }
    peaks = {phase.name: gigabytes(phase.peak) for phase in plan.phases}
    return {"memory": sizes, "device_peak": peaks, "placement": describe(plan, run)}
