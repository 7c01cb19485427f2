"""The steps of BindWeave one after the other in one process: refined prompts, states, and then the videos.

What a step makes lies in a work folder and names what it was made of, so a step has only that to do which is missing or
whose prompt, pictures, weights or settings are others. No step begins while a network of the one before it is there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bindweave.extraction import Extraction, check_mllm_folder, extract_samples
from bindweave.prompts import MLLM_NEGATIVE_PROMPT
from bindweave.refine import Refinement, refine_samples
from bindweave.samples import Sample, read_samples, write_samples
from bindweave.steps import Outcome, Progress, leave_memory
from bindweave.subject_training import check_connector, check_width
from bindweave.task import SubjectToVideo
from wan_core import WanError
from wan_core.files import check_place
from wan_core.media import check_own_files

if TYPE_CHECKING:
    import torch

    from bindweave.request import SubjectRequest
    from bindweave.task import SubjectInputs
    from wan_core.tasks import Components

GIVEN, REFINED, FEATURES, STATES = "run_samples.json", "run_refined.json", "run_features.json", "hidden_states"
"""What lies in a work folder: sample files before and after refinement and with states, and the states' folder.

Names that no file of a user has, as he may name a folder of his own.
"""


class PlannedSubjects(SubjectToVideo):
    """Subjects whose states are still to be made: all else of a request is checked."""

    def check_states(self, request: SubjectRequest) -> None:
        pass

    def check(self, inputs: SubjectInputs, components: Components) -> SubjectInputs:
        return inputs


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The way from samples, whose pictures are in a folder, to samples with states.

    ``work`` is an absolute path; ``part`` is a folder in it for the sample files of one of several processes.
    """

    work: Path
    pictures: Path
    mllm: Path
    refinement: Refinement | None
    negative_prompt: str = MLLM_NEGATIVE_PROMPT
    part: str = ""

    @property
    def files(self) -> list[Path]:
        """The sample files that are written."""
        return [self.work / self.part / name for name in (GIVEN, REFINED, FEATURES)]

    def check(self, inputs: Sequence[Path]) -> None:
        """Raises RequestError where a result would take the place of an input, MediaError where none can be written,
        CheckpointError for a folder without a language model."""
        check_place(self.work, is_folder=True)
        check_own_files(self.files, inputs)
        check_mllm_folder(self.mllm)

    def check_states(self, components: Components) -> None:
        """Raises CheckpointError where the states will not be those that the parts of the video model take, for a
        network without connector, and for a language model without its tokenizer."""
        from bindweave.mllm import load_chat_tokenizer, mllm_config

        check_connector(components)
        check_width(mllm_config(self.mllm).dim, components, self.mllm)
        if self.refinement is not None:  # a step before the one that opens it
            load_chat_tokenizer(self.mllm)

    def states(
        self,
        samples: Mapping[str, Sample],
        device: torch.device,
        dtype: torch.dtype,
        *,
        progress: Progress = lambda steps, title: steps,
        log: Callable[[str], None] = lambda text: None,
    ) -> list[WanError]:
        """Make the states of all samples; what failed. Raises the failure where no sample is left."""
        given, refined, features = self.files
        write_samples(given, {name: each.values for name, each in samples.items()})
        failures: list[WanError] = []
        source, left = given, len(samples)

        def goes_on(outcome: Outcome) -> int:
            if outcome.error is not None:
                failures.append(outcome.error)
                if len(outcome.failed) == left:
                    raise outcome.error
            return left - len(outcome.failed)

        if self.refinement is not None:
            chat = self.refinement
            left = goes_on(
                refine_samples(
                    given, refined, self.pictures, chat.open_chat,
                    model=chat.model, progress=progress, log=log, keep_failed=False,
                )
            )  # fmt: skip
            source = refined
            leave_memory(device)
        wanted = Extraction(
            source=source,
            output=features,
            pictures=self.pictures,
            folder=self.work / STATES,
            mllm=self.mllm,
            negative_prompt=self.negative_prompt,
        )
        goes_on(extract_samples(wanted, device, dtype, progress=progress, log=log, keep_failed=False))
        return failures

    def with_states(self) -> dict[str, Sample]:
        """The samples with the states that were made, whichever process did."""
        return read_samples(self.files[-1])


def work_folder(asked: Path | None, output: Path) -> Path:
    """Where the steps keep what they make: as asked, or beside the output under its name and ``_work``."""
    place = Path(os.path.abspath(output))
    return Path(os.path.abspath(asked)) if asked is not None else place.with_name(f"{place.name}_work")


def with_states_to_come(sample: Sample, work: Path) -> Sample:
    """A sample that names the states that it will have."""
    paths = [str(work / STATES / f"{sample.name}_hidden_states{end}.safetensors") for end in ("", "_negative")]
    return replace(sample, hidden_states=paths[0], hidden_states_negative=paths[1])
