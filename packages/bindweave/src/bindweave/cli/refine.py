"""``bindweave refine``: prompts that tell what the pictures show."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wan_core import RequestError
from wan_core.cli import (
    PLACE,
    SHARE,
    ErrorReporting,
    debug_option,
    own_device,
    progress_unless,
    reporter,
    share_of_work,
)

if TYPE_CHECKING:
    from bindweave.refine import Refinement


def chat_options() -> list[click.Option]:
    """Which language model is asked, and how."""
    return [
        click.Option(["--model"], help="Model of an endpoint of OpenAI's protocol, which refines prompts."),
        click.Option(["--base-url"], help="The endpoint; default: OPENAI_BASE_URL, else OpenAI's."),
        click.Option(
            ["--key-variable"],
            default="OPENAI_API_KEY",
            show_default=True,
            help="Environment variable with its key, or with several, parted by commas, that take turns.",
        ),
        click.Option(["--local"], help="Instead: folder or repository of a Qwen2.5-VL to run here."),
        click.Option(
            ["--timeout"], type=click.FloatRange(0, min_open=True), default=60.0, show_default=True, help="Seconds."
        ),
        click.Option(
            ["--retries"], type=click.IntRange(0, 20), default=2, show_default=True, help="When the endpoint is busy."
        ),
        click.Option(
            ["--max-tokens"], type=click.IntRange(1), default=2000, show_default=True, help="Longer answers are errors."
        ),
    ]


def chosen_model(values: Mapping[str, Any]) -> "Refinement | None":
    """The language model of these options; None where none is named. Raises RequestError for two, and for a key that
    is missing."""
    from bindweave.refine import Refinement
    from bindweave.steps import model_digest
    from wan_core.llm import Chat, LocalChat, open_endpoint

    model, local = values["model"], values["local"]
    if model is not None and local is not None:
        raise RequestError("name one language model: --model NAME of an endpoint, or --local FOLDER")
    if model is not None:
        limits = {name: values[name] for name in ("key_variable", "timeout", "retries", "max_tokens")}
        endpoint = open_endpoint(model, values["base_url"], **limits)
        return Refinement(open_chat=lambda: endpoint, model=model)
    if local is None:
        return None
    from wan_core.runtime import resolve_device

    device = resolve_device(own_device(values["device"]))

    def open_chat() -> Chat:
        return LocalChat(local, device, max_tokens=values["max_tokens"])

    return Refinement(open_chat=open_chat, model=model_digest(local))


@click.command(cls=ErrorReporting, params=[*chat_options(), debug_option()])
@click.argument("samples", type=PLACE, metavar="SAMPLES.json")
@click.option("--output", "-o", type=PLACE, required=True, help="The new sample file.")
@click.option("--base-img-dir", type=PLACE, default=Path("."), help="Folder of the pictures. [default: this one]")
@click.option("--device", help="Of --local: cpu, cuda, cuda:1, mps; default: the best one.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--again", is_flag=True, help="Refine refined prompts, too; the first one is kept.")
@click.option("--shard", type=SHARE, help="Every N-th sample from the I-th on.  [default: torchrun's, else all]")
@click.option("--quiet", is_flag=True, help="No progress and no notes.")
def refine(**values: Any) -> None:
    """Let a language model rewrite the prompts of SAMPLES.json after a look at their pictures.

    The result is a new file; what is done in it stays on a second run.
    """
    from bindweave.ledger import Share
    from bindweave.refine import refine_samples

    chat = chosen_model(values)
    if chat is None:
        raise RequestError("name the language model: --model NAME of an endpoint, or --local FOLDER")
    outcome = refine_samples(
        values["samples"],
        values["output"],
        values["base_img_dir"],
        chat.open_chat,
        model=chat.model,
        seed=values["seed"],
        again=values["again"],
        share=Share(*share_of_work(values["shard"])),
        progress=progress_unless(values["quiet"]),
        log=reporter(values["quiet"]),
    )
    outcome.conclude()
