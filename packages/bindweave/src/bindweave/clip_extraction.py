"""States beside clips that are trained on: ``bindweave extract CLIPS``.

Each example gets the states of its caption and its pictures, and those of the same pictures without a prompt, for the
share of the samples that goes without caption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindweave.extraction import check_mllm_folder
from bindweave.hidden_states import extract, is_current, write_hidden_states
from bindweave.ledger import Share
from bindweave.mllm import open_mllm
from bindweave.steps import Progress, UnusableError, digest_of, leave_memory, model_digest, opened_once
from bindweave.subject_training import REFERENCES, STATES, SUBJECT_FILES, empty_states_file
from bindweave.subjects import SCORES, chosen_subjects, subject_files
from wan_core import RequestError
from wan_core.files import hash_file, plain_text
from wan_core.training import Example, FoundExamples, data_folders, look_into

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _ClipStates:
    """The files of one example's states, and what they are made of."""

    example: Example
    settings: Mapping[str, str]
    hashes: Sequence[str]

    @property
    def prompts(self) -> dict[Path, str]:
        """The files, with the prompt of each."""
        clip = self.example.file
        path = clip.with_name(f"{clip.stem}.{STATES}.safetensors")
        return {path: self.example.caption, empty_states_file(path): ""}

    def digest(self, prompt: str) -> str:
        return digest_of(prompt, self.hashes, self.settings)

    @property
    def is_there(self) -> bool:
        return all(is_current(path, self.digest(prompt)) for path, prompt in self.prompts.items())

    def write(self, mllm: tuple[Any, Any]) -> None:
        """Make the files with a network and its tokenizer. Raises RequestError, MediaError."""
        pictures = [each.image for each in chosen_subjects(self.example.files[REFERENCES])]
        made = extract(*mllm, pictures, list(self.prompts.values()))
        for (path, prompt), states in zip(self.prompts.items(), made, strict=True):
            record = {
                **self.settings,
                "sample": self.example.file.name,
                "prompt_sha256": digest_of(prompt),
                "pictures_sha256": ",".join(self.hashes),
                "digest": self.digest(prompt),
            }
            write_hidden_states(path, states, record)


def extract_clips(
    folder: Path,
    mllm: Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    share: Share = Share(),  # noqa: B008 - a value
    progress: Progress = lambda steps, title: steps,
    log: Callable[[str], None] = lambda text: None,
) -> None:
    """Write ``CLIP.states.safetensors`` and ``CLIP.states_empty.safetensors`` beside each clip of a folder.

    States that are there and were made of the same things stay; the language model is loaded when there is work, and
    only while this runs. Raises the errors of all examples that failed together, at the end, and CheckpointError for a
    folder that is no language model.
    """
    found = look_into(data_folders([folder]), files={REFERENCES: SUBJECT_FILES[REFERENCES]})
    check_mllm_folder(mllm)
    settings = {"mllm": mllm.name, "dtype": str(dtype).removeprefix("torch."), "weights": model_digest(mllm)}
    opened = opened_once(lambda: open_mllm(mllm, dtype, device))
    _refuse_shared(found.examples)
    made = _made(found, found.examples[share.index :: share.count], settings, opened, progress)
    del opened
    leave_memory(device)
    found.refuse(str(folder), "mend them; the same command makes the rest")
    log(f"{plain_text(folder)}: states of {made} examples made; those of all others are there")


def _refuse_shared(examples: Sequence[Example]) -> None:
    """Raises RequestError for one clip under two captions: its states can be those of one alone."""
    first: dict[Path, Example] = {}
    for each in examples:
        if each.packed is not None:
            raise RequestError(f"{each.name} is in a shard, which cannot hold states; unpack it")
        other = first.setdefault(each.file, each)
        if (other.caption, other.files) != (each.caption, each.files):
            raise RequestError(f"{each.name} is in two examples; cut it into two files, as states lie beside each")


def _made(
    found: FoundExamples,
    examples: Sequence[Example],
    settings: Mapping[str, str],
    mllm: Callable[[], tuple[Any, Any]],
    progress: Progress,
) -> int:
    """How many examples got states; what failed is noted in ``found``."""
    made = 0
    for example in progress(examples, "extract"):
        with found.judging(example.name):
            states = _ClipStates(example, settings, _hashes(example.files[REFERENCES]))
            if states.is_there:
                continue
            try:
                states.write(mllm())
            except UnusableError as error:
                raise error.reason from error.reason.__cause__
            made += 1
    return made


def _hashes(place: Path) -> list[str]:
    """The SHA-256 of everything that says what the subjects are."""
    masked = [each for pair in subject_files(place).items() for each in pair if each is not None]
    return [hash_file(path) for path in [*masked, *([place / SCORES] if (place / SCORES).is_file() else [])]]
