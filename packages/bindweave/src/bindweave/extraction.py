"""The states of every sample of a file, made once and kept: ``bindweave extract``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindweave.hidden_states import extract, is_current, write_hidden_states
from bindweave.ledger import Ledger, Share
from bindweave.mllm import open_mllm
from bindweave.samples import Sample, check_new_file, read_samples
from bindweave.steps import Progress, digest_of, load_pictures, opened_once, picture_hashes, work_through
from wan_core import CheckpointError, RequestError
from wan_core.files import existing_file, folder_files, plain_text, sample_file

if TYPE_CHECKING:
    import torch

_STANDARD_NEGATIVE = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall "
    "gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, "
    "poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three "
    "legs, many people in the background, walking backwards"
)
NEGATIVE_PROMPT = f"{_STANDARD_NEGATIVE}, split screen, divided frame, frame split, multiple parts, separated"
"""The text encoder's negative prompt: Wan's list in English, and what references bring about."""

MLLM_NEGATIVE_PROMPT = f"{NEGATIVE_PROMPT}, motionless, frozen, still image, no movement, stationary, unmoving"
"""The language model's negative prompt, which says more than the text encoder's, as in the original."""


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


def extract_samples(
    wanted: Extraction,
    device: torch.device,
    dtype: torch.dtype,
    *,
    share: Share = Share(),  # noqa: B008 - a value
    progress: Progress = lambda steps, title: steps,
    log: Callable[[str], None] = lambda text: None,
) -> None:
    """Write the positive and negative states of each sample, and the samples with their paths into a new file.

    States that are there and were made of the same prompt, pictures, weights and settings stay. The language model is
    loaded when there is work, and only while this runs. Raises as :func:`bindweave.steps.work_through`.
    """
    check_new_file(wanted.output, wanted.source)
    if not wanted.negative_prompt.strip():
        raise RequestError("the language model's negative prompt is empty; leave it out for the usual one")
    samples = read_samples(existing_file(wanted.source, "sample file"))
    weights = _weights_digest(wanted.mllm)
    settings = {"mllm": wanted.mllm.name, "weights": weights, "dtype": str(dtype).removeprefix("torch.")}
    hashes = {name: picture_hashes(each, wanted.pictures) for name, each in samples.items()}
    prompts = {name: (each.prompt, wanted.negative_prompt) for name, each in samples.items()}
    ledger = Ledger(
        wanted.output, {name: digest_of(prompts[name], hashes[name], settings, str(wanted.folder)) for name in samples}
    )
    mllm = opened_once(lambda: open_mllm(wanted.mllm, dtype, device))

    def make(sample: Sample) -> dict[str, Any]:
        files = [wanted.folder / f"{sample.name}_hidden_states{end}.safetensors" for end in ("", "_negative")]
        digests = [digest_of(prompt, hashes[sample.name], settings) for prompt in prompts[sample.name]]
        if not all(is_current(path, digest) for path, digest in zip(files, digests, strict=True)):
            pictures = load_pictures(sample, wanted.pictures, log)
            if not pictures:
                raise RequestError("none of its pictures can be read; check the folder of pictures")
            made = extract(*mllm(), pictures, prompts[sample.name])
            for path, digest, prompt, states in zip(files, digests, prompts[sample.name], made, strict=True):
                record = {
                    **settings,
                    "sample": sample.name,
                    "prompt_sha256": digest_of(prompt),
                    "pictures_sha256": ",".join(hashes[sample.name]),
                    "digest": digest,
                }
                write_hidden_states(path, states, record)
        return {"hidden_states_path": str(files[0]), "hidden_states_path_negative": str(files[1])}

    _drop_lost(ledger, samples, share)
    work_through(samples, ledger, share, make, title="extract", progress=progress, log=log)


def _drop_lost(ledger: Ledger, samples: dict[str, Sample], share: Share) -> None:
    """A note does not count when its files are gone."""
    for name in share.of(list(samples)):
        noted = ledger.changes(name)
        if noted is not None and not all(Path(str(path)).is_file() for path in noted.values()):
            ledger.note(name, {}, error="its states are gone")


def _weights_digest(folder: Path) -> str:
    """A name of the language model's weights. Raises CheckpointError for a folder without any."""
    files = folder_files(folder, (".safetensors",)) if folder.is_dir() else []
    if not files:
        raise CheckpointError(
            f"{plain_text(folder)} holds no weights of Qwen2.5-VL; fetch Qwen/Qwen2.5-VL-7B-Instruct and name it"
        )
    return digest_of([sample_file(path) for path in files])
