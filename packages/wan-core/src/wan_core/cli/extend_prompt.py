"""``wan extend-prompt``: prompts on standard output as a language model extends them, without a video."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from wan_core.cli.extending import make_extender, model_options
from wan_core.cli.group import PLACE, ErrorReporting
from wan_core.cli.jobs import read_prompts
from wan_core.cli.options import debug_option
from wan_core.cli.progress import reporter
from wan_core.errors import RequestError
from wan_core.presets import get_preset
from wan_core.prompt_extend import Extension, Idea

_MOST_IMAGES = {"t2v": 0, "i2v": 1, "s2v": 1, "flf2v": 2}


@click.command(cls=ErrorReporting, params=[*model_options(), debug_option()])
@click.option("--prompt", help="The idea of a video; '' with --image: whatever fits the picture.")
@click.option("--prompt-file", type=PLACE, help="A text file with one prompt a line; a result a line.")
@click.option("--task", help="The model that the prompt is for. [t2v-A14B, with --image i2v-A14B]")
@click.option("--image", "images", type=PLACE, multiple=True, help="A picture that the video shows; repeatable.")
@click.option("--base-seed", "--seed", "seed", type=int, default=-1, help="-1 (default) picks one.")
@click.option("--device", help="Of a local model: cpu, cuda, cuda:1, mps; default: the best one.")
@click.option("--json", "as_json", is_flag=True, help="Print the result and what was sent as JSON.")
@click.option("--quiet", is_flag=True, help="No notes.")
def extend_prompt(images: tuple[Path, ...], seed: int, as_json: bool, **values: Any) -> None:
    """Print a prompt as a language model extends it for a video model, and nothing else."""
    prompts = read_prompts(values["prompt"], values["prompt_file"])
    kind = _kind_of(values["task"] or ("i2v-A14B" if images else "t2v-A14B"), images)
    seed = seed if seed >= 0 else random.SystemRandom().randrange(2**31)
    ideas = [Idea(prompt=prompt, kind=kind, images=images, seed=seed) for prompt in prompts]
    extender = make_extender(values, has_images=bool(images), log=reporter(values["quiet"]))
    sent = []
    for idea in ideas:
        extender.check(idea)
        sent.append([_shown(message.role, message.parts) for message in extender.messages(idea)])
    extensions = extender.extend(ideas, _device(values["device"]) if extender.chosen.is_local else "cpu")
    if not as_json:
        for extension in extensions:
            click.echo(extension.prompt)
        return
    url = extender.chosen.url
    rows = [
        {**_result(extension), **({} if url is None else {"url": url}), "sent": messages}
        for extension, messages in zip(extensions, sent, strict=True)
    ]
    click.echo(json.dumps(rows if values["prompt_file"] else rows[0], indent=2, ensure_ascii=False))


def _kind_of(task: str, images: Sequence[Path]) -> str:
    """The kind of a task's prompts. Raises RequestError for pictures that it does not take."""
    kind: str = get_preset(task).task.prompt_kind
    most = _MOST_IMAGES.get(kind, len(images))
    if len(images) > most or (kind == "flf2v" and len(images) == 1):
        wanted = {0: "no picture", 1: "one picture", 2: "two pictures, the first and the last"}[most]
        raise RequestError(f"{task} takes {wanted}, got {len(images)} times --image")
    return kind


def _result(extension: Extension) -> dict[str, Any]:
    record = extension.record()
    return {"prompt": extension.prompt, "original": record.pop("prompt"), **record}


def _device(asked: str | None) -> str:
    from wan_core.runtime import resolve_device

    return str(resolve_device(asked))


def _shown(role: str, parts: Sequence[Any]) -> dict[str, Any]:
    """A message as JSON: texts, and pictures by their size."""
    return {"role": role, "content": [part if isinstance(part, str) else {"image": list(part.size)} for part in parts]}
