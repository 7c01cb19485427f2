"""Many videos in one run: those of a sample JSON that are not there yet, each written at once, and their manifest."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindweave.hidden_states import read_hidden_states
from bindweave.ledger import Share
from bindweave.samples import Sample
from wan_core import MediaError, RequestError, WanError
from wan_core.cli import Job, plan_jobs
from wan_core.drafts import alone_in, write_text
from wan_core.files import plain_text
from wan_core.presets import Preset

if TYPE_CHECKING:
    from wan_core.media import Provenance

MANIFEST = "manifest.json"
"""Beside the videos: sample id to video, prompt and references, as OpenS2V-Eval's scores need them."""


@dataclass
class SampleBatch:
    """Samples on their way to videos in ``output_dir``, in the order of their ids; this process makes its ``share``.

    Pictures are relative to ``image_root``, states to where the command runs; without ``reads_states`` these are still
    to be made. ``any_seed``: a video of another seed is as good. ``failed`` says which samples cannot be made, and why;
    ``done`` counts the videos that were there.
    """

    samples: Mapping[str, Sample]
    image_root: Path
    output_dir: Path
    log: Callable[[str], None]
    share: Share = field(default_factory=Share)
    any_seed: bool = True
    reads_states: bool = True
    failed: dict[str, WanError] = field(default_factory=dict)
    done: int = 0

    def plan(self, preset: Preset, values: Mapping[str, Any], check: Callable[..., object]) -> list[Job]:
        """The videos of the samples, those that are there included. Raises the first error where none can be made."""
        jobs = []
        for name in self.share.of(list(self.samples)):
            try:
                jobs += self._jobs(preset, values, self.samples[name], check)
            except WanError as error:
                self.failed[name] = error
                self.log(f"left out: {plain_text(name)}: {error}")
        if not jobs and self.failed:
            raise next(iter(self.failed.values()))
        return jobs

    def is_made(self, path: Path, wanted: Provenance) -> bool:
        """Whether a video is there and was made of the same things; one that says nothing of that stays, too."""
        is_there = is_made(path, wanted, self.log, any_seed=self.any_seed, keep_unknown=True)
        self.done += is_there
        return is_there

    def _jobs(
        self, preset: Preset, values: Mapping[str, Any], sample: Sample, check: Callable[..., object]
    ) -> list[Job]:
        given = {
            **values,
            "prompt": sample.prompt,
            "images": tuple(self.image_root / image for image in sample.images),
            "hidden_states": sample.hidden_states and Path(sample.hidden_states),
            "hidden_states_negative": sample.hidden_states_negative and Path(sample.hidden_states_negative),
            "output": self._output(sample),
        }
        for name in ("hidden_states", "hidden_states_negative"):
            if self.reads_states and given[name] and given[name].is_file():
                read_hidden_states(given[name])
        try:
            return plan_jobs(preset, given, check)
        except WanError:
            readable = self._readable(sample, given["images"])
            if len(readable) == len(given["images"]):
                raise
            return plan_jobs(preset, {**given, "images": readable}, check)

    def _readable(self, sample: Sample, images: Sequence[Path]) -> tuple[Path, ...]:
        """The pictures that can be opened: the first must, others are left out with a note, as in the original."""
        from wan_core import media

        found = []
        for index, path in enumerate(images):
            try:
                media.load_image(path)
            except WanError as error:
                if index == 0:
                    raise
                self.log(f"note: {plain_text(sample.name)}: a picture is left out: {error}")
                continue
            found.append(path)
        return tuple(found)

    def _output(self, sample: Sample) -> Path:
        return self.output_dir / f"{sample.name}.mp4"

    def write_manifest(self) -> None:
        """Say which videos there are. Raises MediaError when the disk refuses."""
        busy = MediaError(f"another process is writing {self.output_dir / MANIFEST}; try again")
        with alone_in(self.output_dir, busy, name=f".{MANIFEST}.lock", wait=60):
            rows = self._other_rows() | {
                name: {
                    "video": self._output(sample).name,
                    "prompt": sample.prompt,
                    "references": sample.values["img_paths"],
                }
                for name, sample in self.samples.items()
                if self._output(sample).is_file()
            }
            write_text(self.output_dir / MANIFEST, json.dumps(rows, indent=4, ensure_ascii=False) + "\n")
        with contextlib.suppress(OSError):
            (self.output_dir / f".{MANIFEST}.lock").unlink(missing_ok=True)

    def _other_rows(self) -> dict[str, Any]:
        """What the manifest has of other samples whose videos are there."""
        try:
            known = json.loads((self.output_dir / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        rows = known.items() if isinstance(known, dict) else ()
        names = {name for name, row in rows if isinstance(row, dict) and name not in self.samples}
        return {name: known[name] for name in sorted(names) if (self.output_dir / f"{name}.mp4").is_file()}

    def conclude(self) -> None:
        """Say what was there. Raises RequestError, with a count and the ids, where samples were left out."""
        if self.done:
            self.log(f"{self.done} of {len(self.share.of(list(self.samples)))} videos were there already")
        if self.failed:
            names = ", ".join(plain_text(name) for name in list(self.failed)[:5])
            raise RequestError(f"{len(self.failed)} of the samples could not be made: {names}; the others are there")


def is_made(
    path: Path, wanted: Provenance, log: Callable[[str], None], *, any_seed: bool, keep_unknown: bool = False
) -> bool:
    """Whether a video is there whose record is the wanted one in all that decides how it looks.

    Of one that is made again it is told why. One without a record that can be read counts with ``keep_unknown``.
    """
    from wan_core.media import is_pattern, read_provenance

    if not os.path.lexists(path) and not is_pattern(path):
        return False
    try:
        found = read_provenance(path)
    except RequestError:
        return False
    except MediaError as error:
        if keep_unknown:
            log(f"note: {error}. It stays; remove it to make it again")
        return keep_unknown
    changed = [name for name in found.differences(wanted) if not (any_seed and name == "seed")]
    if changed:
        log(f"{path} is made again: {', '.join(changed)} changed")
    return not changed


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
