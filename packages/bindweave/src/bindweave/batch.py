"""Many videos in one run: those of a sample JSON that are not there yet, each written at once, and their manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bindweave.samples import Sample, read_samples
from wan_core import RequestError, WanError
from wan_core.cli import Job, plan_jobs
from wan_core.drafts import write_text
from wan_core.files import plain_text
from wan_core.presets import Preset

MANIFEST = "manifest.json"
"""Beside the videos: sample id to video, prompt and references, as OpenS2V-Eval's scores need them."""


@dataclass
class SampleBatch:
    """The samples of a file on their way to videos in ``output_dir``.

    Pictures are relative to ``image_root``, states to where the command runs. ``failed`` says which samples cannot be
    made, and why; ``done`` counts those whose video was there already.
    """

    samples: Path
    image_root: Path
    output_dir: Path
    log: Callable[[str], None]
    failed: dict[str, WanError] = field(default_factory=dict)
    done: int = 0
    _rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def plan(self, preset: Preset, values: Mapping[str, Any], check: Callable[..., object]) -> list[Job]:
        """The videos still to make. Raises the first sample's error where none of them can be made."""
        samples = read_samples(self.samples)
        jobs = []
        for name, sample in samples.items():
            output = self.output_dir / f"{name}.mp4"
            self._rows[output.name] = self._row(sample, output)
            if output.is_file():
                self.done += 1
                continue
            try:
                jobs += self._jobs(preset, values, sample, output, check)
            except WanError as error:
                self.failed[name] = error
                self.log(f"left out: {plain_text(name)}: {error}")
        if self.done:
            self.log(f"{self.done} of {len(samples)} videos are there already")
        if not jobs and self.failed:
            raise next(iter(self.failed.values()))
        return jobs

    def _jobs(
        self, preset: Preset, values: Mapping[str, Any], sample: Sample, output: Path, check: Callable[..., object]
    ) -> list[Job]:
        given = {
            **values,
            "prompt": sample.prompt,
            "images": self._images(sample),
            "hidden_states": sample.hidden_states and Path(sample.hidden_states),
            "hidden_states_negative": sample.hidden_states_negative and Path(sample.hidden_states_negative),
            "output": output,
        }
        return plan_jobs(preset, given, check)

    def _images(self, sample: Sample) -> tuple[Path, ...]:
        """The pictures that can be opened: the first must, others are left out with a note, as in the original."""
        from wan_core import media

        found = []
        for index, path in enumerate(self.image_root / image for image in sample.images):
            try:
                media.load_image(path)
            except WanError as error:
                if index == 0:
                    raise
                self.log(f"note: {plain_text(sample.name)}: a picture is left out: {error}")
                continue
            found.append(path)
        return tuple(found)

    def _row(self, sample: Sample, output: Path) -> dict[str, Any]:
        return {
            "id": sample.name,
            "video": output.name,
            "prompt": sample.prompt,
            "references": sample.values["img_paths"],
        }

    def write_manifest(self) -> None:
        """Say which videos there are. Raises MediaError when the disk refuses."""
        there = [row for name, row in self._rows.items() if (self.output_dir / name).is_file()]
        rows = {row["id"]: {key: value for key, value in row.items() if key != "id"} for row in there}
        write_text(self.output_dir / MANIFEST, json.dumps(rows, indent=4, ensure_ascii=False) + "\n")

    def conclude(self) -> None:
        """Raises RequestError, with a count and the ids, where samples were left out."""
        if self.failed:
            names = ", ".join(plain_text(name) for name in list(self.failed)[:5])
            raise RequestError(f"{len(self.failed)} of the samples could not be made: {names}; the others are there")


def without_prompt(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run whose prompts, pictures and states come from a sample file. Raises RequestError for such."""
    own = {
        "--prompt": values["prompt"],
        "--prompt-file": values["prompt_file"],
        "--image": values["images"],
        "--hidden-states": values["hidden_states"],
        "--hidden-states-negative": values["hidden_states_negative"],
        "--output": values["output"],
    }
    given = [option for option, value in own.items() if value]
    if given:
        raise RequestError(f"{given[0]} comes from the sample file; leave it out, or leave out --config and --samples")
    if values["num_videos"] != 1:
        raise RequestError("a sample is one video named after it; leave --num-videos out")
    return dict(values)
