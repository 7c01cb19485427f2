"""Prompts that tell what the pictures show: a language model with eyes writes them, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindweave.ledger import Ledger, Share
from bindweave.prompts import INSTRUCTION
from bindweave.samples import Sample, read_inputs, read_samples
from bindweave.steps import Outcome, Progress, digest_of, load_pictures, opened_once, picture_hashes, work_through
from wan_core.llm import Chat, Message

if TYPE_CHECKING:
    from PIL.Image import Image

REFINED_FROM = "refined_from"
"""The key of a sample that names what its prompt was made of."""


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """Who refines the prompts: ``open_chat`` is called when there is work; ``model`` names the language model."""

    open_chat: Callable[[], Chat]
    model: str


def refinement(prompt: str, pictures: Sequence[Image]) -> list[Message]:
    """The conversation that asks for a prompt: instruction, numbered pictures, the user's idea, as parts in order."""
    numbered = [part for number, each in enumerate(pictures, 1) for part in (f"Picture {number}:", each)]
    return [Message("user", (INSTRUCTION, *numbered, f"The user's idea: {prompt}"))]


def refine_samples(
    source: Path,
    output: Path,
    pictures: Path,
    open_chat: Callable[[], Chat],
    *,
    model: str,
    seed: int = 0,
    again: bool = False,
    share: Share = Share(),  # noqa: B008 - a value
    progress: Progress = lambda steps, title: steps,
    log: Callable[[str], None] = lambda text: None,
    keep_failed: bool = True,
) -> Outcome:
    """Refine the prompts of the samples in ``source`` into a new file.

    A sample that has a ``prompt_old`` is done and stays, unless ``again``; so does what an earlier ``output`` made of
    the same prompt, pictures, ``model`` and seed. The first ``prompt_old`` stays in any case. Without a picture that
    can be read, the prompt stays as it was. ``open_chat`` is called when there is work. Returns and raises as
    :func:`bindweave.steps.work_through`.
    """
    samples = read_inputs(source, pictures, output)
    done = read_samples(output) if output.exists() and not again else {}
    digests = {
        name: digest_of(each.prompt, picture_hashes(each, pictures), model, seed, INSTRUCTION)
        for name, each in samples.items()
    }
    ledger = Ledger(output, digests)
    for name in share.of(list(samples)):
        found = _finished(samples[name], done.get(name), digests[name], again=again)
        if found is not None:
            ledger.note(name, found)
    chat = opened_once(open_chat)

    def make(sample: Sample) -> dict[str, Any]:
        loaded = load_pictures(sample, pictures, log)
        if not loaded:
            log(f"note: {sample.name} has no picture that can be read; its prompt stays")
            return {}
        answer = chat().complete(refinement(sample.prompt, loaded), seed=seed)
        first = sample.values.get("prompt_old", sample.prompt)
        return {"prompt": answer.text, "prompt_old": first, REFINED_FROM: digests[sample.name]}

    return work_through(
        samples, ledger, share, make, title="refine", progress=progress, log=log, keep_failed=keep_failed
    )


def _finished(sample: Sample, earlier: Sample | None, digest: str, *, again: bool) -> dict[str, Any] | None:
    """What an earlier run made of a sample; None where there is work."""
    if again:
        return None
    if "prompt_old" in sample.values:
        return {}
    if earlier is None or earlier.values.get(REFINED_FROM) != digest:
        return None
    return {name: earlier.values[name] for name in ("prompt", "prompt_old", REFINED_FROM) if name in earlier.values}
