"""The states of every sample of a file, made once and kept: ``bindweave extract``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindweave.hidden_states import extract, is_current, write_hidden_states
from bindweave.ledger import Ledger, Share
from bindweave.mllm import open_mllm
from bindweave.prompts import MLLM_NEGATIVE_PROMPT
from bindweave.samples import Sample, read_inputs
from bindweave.steps import (
    Outcome,
    Progress,
    digest_of,
    leave_memory,
    load_pictures,
    model_digest,
    opened_once,
    picture_hashes,
    work_through,
)
from wan_core import CheckpointError, RequestError
from wan_core.files import check_place, folder_files, plain_text

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What to extract: ``source`` and ``output`` are sample files, ``pictures`` and ``folder`` those of what is read
    and made, ``mllm`` that of the language model."""

    source: Path
    output: Path
    pictures: Path
    folder: Path
    mllm: Path
    negative_prompt: str = MLLM_NEGATIVE_PROMPT


@dataclass(frozen=True)
class _States:
    """The files of one sample's states, and what each of them is made of."""

    sample: Sample
    wanted: Extraction
    settings: Mapping[str, str]
    hashes: Sequence[str]

    @property
    def prompts(self) -> tuple[str, str]:
        return self.sample.prompt, self.wanted.negative_prompt

    @property
    def files(self) -> list[Path]:
        ends = "", "_negative"
        return [self.wanted.folder / f"{self.sample.name}_hidden_states{end}.safetensors" for end in ends]

    @property
    def digests(self) -> list[str]:
        return [digest_of(prompt, self.hashes, self.settings) for prompt in self.prompts]

    @property
    def is_there(self) -> bool:
        return all(is_current(path, digest) for path, digest in zip(self.files, self.digests, strict=True))

    @property
    def changes(self) -> dict[str, str]:
        """The keys of the sample that name the files."""
        return dict(zip(("hidden_states_path", "hidden_states_path_negative"), map(str, self.files), strict=True))

    def write(self, mllm: tuple[Any, Any], log: Callable[[str], None]) -> None:
        """Make the files with a network and its tokenizer. Raises RequestError without a picture, and MediaError."""
        pictures = load_pictures(self.sample, self.wanted.pictures, log)
        if not pictures:
            raise RequestError("none of its pictures can be read; check the folder of pictures")
        made = extract(*mllm, pictures, self.prompts)
        for path, digest, prompt, states in zip(self.files, self.digests, self.prompts, made, strict=True):
            record = {
                **self.settings,
                "mllm": self.wanted.mllm.name,
                "sample": self.sample.name,
                "prompt_sha256": digest_of(prompt),
                "pictures_sha256": ",".join(self.hashes),
                "digest": digest,
            }
            write_hidden_states(path, states, record)


def extract_samples(
    wanted: Extraction,
    device: torch.device,
    dtype: torch.dtype,
    *,
    share: Share = Share(),  # noqa: B008 - a value
    progress: Progress = lambda steps, title: steps,
    log: Callable[[str], None] = lambda text: None,
    keep_failed: bool = True,
) -> Outcome:
    """Write the positive and negative states of each sample, and the samples with their paths into a new file.

    States that are there and were made of the same prompt, pictures, weights and settings stay. The language model is
    loaded when there is work, and only while this runs. Returns and raises as :func:`bindweave.steps.work_through`.
    """
    mllm = opened_once(lambda: open_mllm(wanted.mllm, dtype, device))
    settings = {"dtype": str(dtype).removeprefix("torch.")}
    outcome = _extracted(wanted, settings, mllm, share, progress, log, keep_failed)
    del mllm
    leave_memory(device)
    return outcome


def _extracted(
    wanted: Extraction,
    settings: Mapping[str, str],
    mllm: Callable[[], tuple[Any, Any]],
    share: Share,
    progress: Progress,
    log: Callable[[str], None],
    keep_failed: bool,
) -> Outcome:
    if not wanted.negative_prompt.strip():
        raise RequestError("the language model's negative prompt is empty; leave it out for the usual one")
    samples = read_inputs(wanted.source, wanted.pictures, wanted.output)
    check_mllm_folder(wanted.mllm)
    check_place(wanted.folder, is_folder=True)
    settings = {**settings, "weights": model_digest(wanted.mllm)}
    states = {
        name: _States(each, wanted, settings, picture_hashes(each, wanted.pictures)) for name, each in samples.items()
    }
    ledger = Ledger(wanted.output, {name: digest_of(each.digests, each.changes) for name, each in states.items()})
    for name in share.of(list(samples)):  # a note does not count when its files are gone or damaged
        if ledger.changes(name) is not None and not states[name].is_there:
            ledger.note(name, {}, error="its states are gone")

    def make(sample: Sample) -> dict[str, str]:
        own = states[sample.name]
        if not own.is_there:
            own.write(mllm(), log)
        return own.changes

    return work_through(
        samples, ledger, share, make, title="extract", progress=progress, log=log, keep_failed=keep_failed
    )


def check_mllm_folder(folder: Path) -> None:
    """Raises CheckpointError for a folder without weights of a language model."""
    if not (folder_files(folder, (".safetensors",)) if folder.is_dir() else []):
        raise CheckpointError(
            f"{plain_text(folder)} holds no weights of Qwen2.5-VL; fetch Qwen/Qwen2.5-VL-7B-Instruct and name it"
        )
