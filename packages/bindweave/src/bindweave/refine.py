"""Prompts that tell what the pictures show: a language model with eyes writes them, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bindweave.ledger import Ledger, Share
from bindweave.samples import Sample, check_new_file, read_samples
from bindweave.steps import Progress, digest_of, load_pictures, opened_once, picture_hashes, work_through
from wan_core.files import existing_file
from wan_core.llm import Chat, Message

if TYPE_CHECKING:
    from PIL.Image import Image

INSTRUCTION = (
    "You write prompts for a model that makes short videos from a text and from pictures of the subjects. Below "
    "are the pictures, numbered, and then a user's idea. Look closely at each picture and rewrite the idea as one"
    " paragraph of English, 80 to 160 words, that describes a single unbroken shot.\n"
    "- Keep what the user wants: the same subjects, actions and place. Add nobody else.\n"
    "- Describe each subject as its picture shows it: face, hair, clothes, colours, material, shape. Invent "
    "nothing that contradicts a picture. Each subject appears once: no twins, no copies, no split screen, no "
    "picture in the picture.\n"
    "- Say where the subjects are, how near to each other, what they stand on or touch, and from where the light "
    "comes, so that they belong to the scene and do not look pasted into it.\n"
    "- Make the motion clear and strong, step by step; a move of the camera may follow it.\n"
    "- Do not mention the pictures or their numbers. Answer with the paragraph and nothing else."
)
"""What the language model is asked for; our own text."""


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
) -> None:
    """Refine the prompts of the samples in ``source`` into a new file.

    A sample that has a ``prompt_old``, here or in an earlier ``output``, is done and stays, unless ``again``; its first
    ``prompt_old`` stays in any case. Without a picture that can be read, the prompt stays as it was. ``open_chat`` is
    called when there is work. Raises as :func:`bindweave.steps.work_through`.
    """
    check_new_file(output, source)
    samples = read_samples(existing_file(source, "sample file"))
    done = read_samples(output) if output.exists() and not again else {}
    digests = {
        name: digest_of(dict(each.values), picture_hashes(each, pictures), model, seed, INSTRUCTION)
        for name, each in samples.items()
    }
    ledger = Ledger(output, digests)
    for name in share.of(list(samples)):
        found = _finished(samples[name], done.get(name), again=again)
        if found is not None:
            ledger.note(name, found)
    chat = opened_once(open_chat)

    def make(sample: Sample) -> dict[str, Any]:
        loaded = load_pictures(sample, pictures, log)
        if not loaded:
            log(f"note: {sample.name} has no picture that can be read; its prompt stays")
            return {}
        answer = chat().complete(refinement(sample.prompt, loaded), seed=seed)
        return {"prompt": answer.text, "prompt_old": sample.values.get("prompt_old", sample.prompt)}

    work_through(samples, ledger, share, make, title="refine", progress=progress, log=log)


def _finished(sample: Sample, earlier: Sample | None, *, again: bool) -> dict[str, Any] | None:
    """What an earlier run made of a sample; None where there is work."""
    if again:
        return None
    if "prompt_old" in sample.values:
        return {}
    if earlier is None or earlier.values.get("prompt_old") != sample.prompt:
        return None
    if earlier.images != sample.images:
        return None
    return {name: earlier.values[name] for name in ("prompt", "prompt_old")}
