"""``bindweave run``: from a prompt and pictures to a video, all steps in one process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bindweave.cli import infer, refine
from bindweave.ledger import Share
from bindweave.presets import TINY_BINDWEAVE, TINY_MLLM
from wan_core import RequestError, WanError, cli
from wan_core.cli import PLACE, Job, file_words, own_device, plan_jobs, progress_unless, reporter
from wan_core.media import check_output, is_pattern
from wan_core.presets import Preset

if TYPE_CHECKING:
    from bindweave.batch import SampleBatch
    from bindweave.chain import Chain
    from bindweave.samples import Sample
    from wan_core.media import Provenance

HELP = (
    "Make videos in which the subjects of one to four pictures appear, from a prompt and pictures, from a sample JSON "
    "(--samples) or from the original's inference_model_s2v.json (--config). A language model looks at the pictures "
    "(--mllm), after it refined the prompts if --model or --local is given; then the videos are made. What a step made "
    "stays in a work folder: the same command goes on after an interruption, and another prompt, picture or setting "
    "makes again what depends on it and nothing else. Without --ckpt-dir and --mllm the bundled tiny models run."
)
STATES = ("hidden_states", "hidden_states_negative")
LEFT_OUT = {**dict.fromkeys(STATES), "prompt_file": None, "no_metadata": False}
"""Options of ``infer`` that are not for the chain, with the values that they have there."""


def run(preset: Preset, values: Mapping[str, Any]) -> None:
    """One video from flags, or those of a sample file, with all steps before them."""
    from bindweave.refine import Refinement

    processes = cli.processes_of(values)
    log = reporter(values["quiet"] or not processes.is_first)
    values = {**values, **LEFT_OUT}
    own = {name: values.pop(name) for name in ("mllm", "mllm_dtype", "mllm_negative_prompt", "work_dir")}
    chat: Refinement | None = refine.chosen_model(values)
    sources = [path for path in (values["samples"], values["config"]) if path is not None]
    values, batch = infer.prepared(values, log)
    if batch is None:
        processes.own([values["output"]])
    wanted = _Single(values, log) if batch is None else _Batch(values, batch)
    if not wanted.samples:
        log("there are more processes than samples; nothing is left for this one")
        if processes.launch is None:
            return  # else the others wait for it
    preset = infer.preset_for(values, log)
    if own["mllm"] is None and preset is not TINY_BINDWEAVE:
        raise RequestError(
            "the language model is missing: --mllm FOLDER of Qwen2.5-VL, which 'bindweave download' fetches"
        )
    from bindweave.chain import Chain, work_folder

    chain = Chain(
        work=work_folder(own["work_dir"], wanted.place),
        pictures=wanted.pictures,
        mllm=own["mllm"] or TINY_MLLM,
        refinement=chat,
        part=wanted.part,
        **({} if own["mllm_negative_prompt"] is None else {"negative_prompt": own["mllm_negative_prompt"]}),
    )
    chain.check([*sources, *values["images"]])
    _carry_out(preset, wanted, chain, own["mllm_dtype"], log)


def _carry_out(preset: Preset, wanted: _Single | _Batch, chain: Chain, dtype: str, log: Callable[[str], None]) -> None:
    from bindweave.chain import PlannedSubjects, with_states_to_come
    from wan_core.loading import load_pipeline
    from wan_core.runtime import made_by_first, resolve_device, resolve_dtype

    planned = replace(preset, task=PlannedSubjects())
    coming = {name: with_states_to_come(sample, chain.work) for name, sample in wanted.samples.items()}
    jobs = wanted.plan(planned, coming)
    values = wanted.values
    if values["dry_run"]:
        cli.run_generate(planned, values, plan=lambda *_: jobs, is_share=True)
        return
    chain.check_states(load_pipeline(preset, values["ckpt_dir"], cli.runtime_of(preset, values)).components)
    log(f"work folder: {chain.work}")
    device = resolve_device(own_device(values["device"]))
    samples = {name: sample for name, sample in wanted.samples.items() if name not in wanted.failed}
    failures: list[WanError] = []

    def make_states() -> str:
        if samples:
            progress = progress_unless(values["quiet"])
            failures.extend(chain.states(samples, device, resolve_dtype(dtype, device), progress=progress, log=log))
        return ""

    # Of processes that make a video together the first one does what comes before it.
    processes = cli.processes_of(values)
    made_by_first(processes.launch, "states", make_states, together=processes.per_video)
    wanted.make(preset, chain.with_states() if samples else {})
    if failures:
        raise failures[0]


class _Single:
    """One video of flags: a sample that has the name of its output."""

    part = ""
    pictures = Path()

    def __init__(self, values: Mapping[str, Any], log: Callable[[str], None]) -> None:
        from bindweave.samples import Sample, safe_path

        self.log, prompt, images = log, values["prompt"], values["images"]
        if not images:
            raise RequestError("a picture of the subject is needed: --image FILE, one to four times; or --samples FILE")
        if prompt is None:
            raise RequestError("a prompt is needed: --prompt 'what the video shows'")
        output = values["output"] or _named_after(prompt, images)
        self.values = {**values, "output": output}
        self.place = output.parent if is_pattern(output) else output.with_suffix("")
        name = file_words(self.place.name)
        paths = [str(safe_path(os.path.abspath(image), "--image")) for image in images]
        content = {"img_paths": paths, "prompt": prompt}
        self.samples = {name: Sample(name=name, images=tuple(paths), prompt=prompt, values=content)}
        self.failed: Mapping[str, WanError] = {}

    def plan(self, preset: Preset, samples: Mapping[str, Sample]) -> list[Job]:
        return plan_jobs(preset, self._with(samples))

    def make(self, preset: Preset, samples: Mapping[str, Sample]) -> None:
        from bindweave.batch import is_made

        def is_there(path: Path, record: Provenance) -> bool:
            found = is_made(path, record, self.log, any_seed=self.values["seed"] < 0)
            if found:
                self.log(f"{path} is there, made of the same things")
            return found

        cli.run_generate(preset, self._with(samples), is_made=is_there)

    def _with(self, samples: Mapping[str, Sample]) -> dict[str, Any]:
        (sample,) = samples.values()
        states = (Path(path or "") for path in (sample.hidden_states, sample.hidden_states_negative))
        return {**self.values, "prompt": sample.prompt, **dict(zip(STATES, states, strict=True))}


class _Batch:
    """The videos of a sample file, or this process's share of them."""

    def __init__(self, values: Mapping[str, Any], batch: SampleBatch) -> None:
        self.values = values
        names, share = batch.share.of(list(batch.samples)), batch.share
        self.samples = {name: batch.samples[name] for name in names}
        self.part = "" if share.count == 1 else f"part_{share.index + 1}_of_{share.count}"
        self.place = batch.output_dir
        self.pictures = Path(os.path.abspath(batch.image_root))
        self._batch = replace(batch, share=Share())

    @property
    def failed(self) -> Mapping[str, WanError]:
        return self._batch.failed

    def plan(self, preset: Preset, samples: Mapping[str, Sample]) -> list[Job]:
        coming = replace(self._batch, samples=samples, reads_states=False)
        return coming.plan(preset, self.values, check_output)

    def make(self, preset: Preset, samples: Mapping[str, Sample]) -> None:
        self._batch.samples = samples
        infer.make_samples(preset, self.values, self._batch)


def _named_after(prompt: str, images: Sequence[Path]) -> Path:
    """A name that another prompt or other pictures do not have."""
    digest = hashlib.sha256("\n".join([prompt, *map(str, images)]).encode(errors="replace")).hexdigest()
    return Path(f"{file_words(prompt)}_{digest[:6]}.mp4")


def make_command() -> click.Command:
    """The ``run`` command: what ``infer`` takes but states, who refines the prompts, and who reads them."""
    command = infer.make_command("run", run)
    command.help = HELP
    names = {param.name for param in command.params}
    command.params = [
        *(param for param in command.params if param.name not in LEFT_OUT),
        click.Option(["--mllm"], type=PLACE, help="Folder of Qwen2.5-VL-7B-Instruct; default: the bundled tiny one."),
        click.Option(["--mllm-dtype"], default="bfloat16", show_default=True, help="In which it runs."),
        click.Option(["--mllm-negative-prompt"], help="Of the negative states; default: the original's."),
        *(option for option in refine.chat_options() if option.name not in names),
        click.Option(["--work-dir"], type=PLACE, help="For what the steps make. Default: beside the output."),
    ]
    return command


run_command = make_command()
