"""What ``wan generate`` is asked for: requests from options, checked before there is a model, a device or torch."""

import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from wan_core.errors import RequestError
from wan_core.files import read_text
from wan_core.media import check_output, check_own_files, is_pattern
from wan_core.presets import Preset
from wan_core.prompt_extend import TO_COME, Extension, Idea, instruction_for
from wan_core.tasks import GenerationRequest, TaskInputs


@dataclass(frozen=True)
class Job:
    """One video to make: ``idea`` is its prompt where that is still to be extended, ``extension`` where it was."""

    inputs: TaskInputs[Any]
    output: Path
    idea: Idea | None = None
    extension: Extension | None = None


def plan_jobs(preset: Preset, values: Mapping[str, Any], check: Callable[..., object] = check_output) -> list[Job]:
    """Every video to make, checked: prompts, pictures, sizes, and by ``check`` that its file can be written."""
    by_name = {field.name: field for field in fields(preset.task.request_type)}
    usual = by_name["prompt"].default
    prompts = read_prompts(values["prompt"], values["prompt_file"], None if usual is MISSING else usual)
    shared = {name: value for name, value in values.items() if name in by_name and name not in {"prompt", "seed"}}
    written = {name: shared.pop(name) for name in [*shared] if by_name[name].metadata.get("output")}
    if values["size"] is not None:
        shared["width"], shared["height"] = values["size"]
    first_seed = values["seed"] if values["seed"] >= 0 else _chance().randrange(2**31)
    jobs: list[Job] = []
    total = len(prompts) * values["num_videos"]
    for prompt in prompts:
        for offset in range(values["num_videos"]):
            files: dict[str, Any] = {name: path and numbered(path, len(jobs), total) for name, path in written.items()}
            request = preset.task.request_type(prompt=prompt, seed=first_seed + offset, **shared, **files)
            inputs, idea = _planned(preset, request, is_extended=bool(values.get("use_prompt_extend")))
            output = output_path(values["output"], preset, inputs, len(jobs), total, len(prompts))
            jobs.append(Job(inputs, output, idea))
    _check_outputs(jobs, values, written, check)
    return jobs


@cache
def _chance() -> random.Random:
    """Where seeds come from that nobody gave: the same ones in all processes of a run."""
    from wan_core.runtime import launched, made_by_first

    launch = launched()
    if launch is None:
        return random.SystemRandom()
    return random.Random(made_by_first(launch, "seed", lambda: str(random.SystemRandom().getrandbits(64))))


def _planned(preset: Preset, request: GenerationRequest, *, is_extended: bool) -> tuple[TaskInputs[Any], Idea | None]:
    """The inputs of a request, and its prompt as an idea where a language model extends it."""
    if not is_extended:
        return preset.plan(request), None
    task, prompt = preset.task, request.prompt
    instruction_for(task.prompt_kind, has_images=True, is_empty=False)  # refuses before files are read
    inputs = preset.plan(request if prompt.strip() else replace(request, prompt=TO_COME))
    images = tuple(task.prompt_images(inputs))
    return inputs, Idea(prompt=prompt, kind=task.prompt_kind, images=images, seed=request.seed)


def _check_outputs(
    jobs: Sequence[Job], values: Mapping[str, Any], written: Collection[str], check: Callable[..., object]
) -> None:
    for job in jobs:
        check(job.output, num_frames=job.inputs.geometry.num_frames, fps=job.inputs.settings.fps)
    given = [field.name for field in fields(jobs[0].inputs.request) if field.name not in written]
    outputs = [path for job in jobs for path in (job.output, *_files_of(job.inputs.request, written))]
    check_own_files(outputs, [*_files_of(jobs[0].inputs.request, given), *map(Path, dict(values["parts"]).values())])


def _files_of(request: GenerationRequest, names: Iterable[str]) -> list[Path]:
    """The files and folders that fields of a request name."""
    found = [getattr(request, name) for name in names]
    return [
        each for value in found for each in (value if isinstance(value, tuple) else [value]) if isinstance(each, Path)
    ]


def read_prompts(prompt: str | None, prompt_file: Path | None, usual: str | None = None) -> list[str]:
    """The prompts of ``--prompt`` or ``--prompt-file``, else the task's ``usual`` one. Raises ``RequestError``."""
    if prompt is not None and prompt_file is not None:
        raise RequestError("give --prompt or --prompt-file, not both")
    if prompt_file is None and prompt is None:
        prompt = usual
    if prompt is not None:
        return [prompt]
    if prompt_file is None:
        raise RequestError("a prompt is needed: --prompt 'what the video shows', or --prompt-file FILE")
    lines = read_text(prompt_file).splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise RequestError(f"prompt file {prompt_file} has no prompt; write one a line")
    return prompts


def output_path(
    asked: Path | None, preset: Preset, inputs: TaskInputs[Any], index: int, total: int, num_prompts: int
) -> Path:
    """Where video ``index`` of ``total`` goes: a name of its own, by a number or, of one prompt, by its seed."""
    if asked is not None:
        return numbered(asked, index, total)
    request, geometry = inputs.request, inputs.geometry
    path = Path(f"{preset.name}_{geometry.width}x{geometry.height}_{file_words(request.prompt)}_{request.seed}.mp4")
    return numbered(path, index, total) if num_prompts > 1 else path


def file_words(prompt: str) -> str:
    """The beginning of a prompt as part of a file's name."""
    return re.sub(r"[^\w-]+", "_", prompt)[:50].strip("_") or "video"


def numbered(path: Path, index: int, total: int) -> Path:
    """``path`` for file ``index`` of ``total``: a number in the name, or a folder each for a ``%d`` pattern."""
    if total == 1:
        return path
    if is_pattern(path):
        return path.parent / f"{index:04d}" / path.name
    return path.with_name(f"{path.stem}-{index:04d}{path.suffix}")
