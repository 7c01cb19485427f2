"""Prompt extension on the command line: its options, and the prompts of planned videos on their way through it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import click

from wan_core.cli.group import PLACE
from wan_core.cli.jobs import Job
from wan_core.errors import RequestError
from wan_core.prompt_extend import LANGUAGES, METHODS, Extender, ExtendOptions, Extension, KeptPrompts, choose_model

_DEFAULTS = ExtendOptions()


def model_options() -> list[click.Option]:
    """Which language model extends a prompt, and how."""
    return [
        click.Option(
            ["--prompt-extend-method"],
            type=click.Choice(METHODS),
            help=f"An endpoint of DashScope, a Qwen here, an endpoint of OpenAI's protocol. [{_DEFAULTS.method}]",
        ),
        click.Option(["--prompt-extend-model"], help="Its name; of a local one also a folder or a repository."),
        click.Option(
            ["--prompt-extend-target-lang"],
            type=click.Choice(LANGUAGES),
            help=f"Language of the extended prompt. [{_DEFAULTS.language}]",
        ),
        click.Option(["--prompt-extend-fallback"], is_flag=True, help="Where it fails, use the prompt as it is."),
        click.Option(
            ["--prompt-extend-timeout"],
            type=click.FloatRange(0, min_open=True),
            help=f"Seconds for one try at an endpoint. [{_DEFAULTS.timeout:g}]",
        ),
        click.Option(
            ["--prompt-extend-max-tokens"],
            type=click.IntRange(1),
            help="A longer answer is an error. [512 here, 2000 at an endpoint]",
        ),
        click.Option(
            ["--prompt-extend-keep"], type=PLACE, help="Keep the results in this JSON file; what it has is not asked."
        ),
    ]


def extend_options() -> list[click.Option]:
    """The options of commands that make videos."""
    use = click.Option(["--use-prompt-extend"], is_flag=True, help="Let a language model extend the prompt first.")
    return [use, *model_options()]


def check_unused(values: Mapping[str, Any]) -> None:
    """Raises RequestError for options of prompt extension without ``--use-prompt-extend``."""
    given = [name for name, value in values.items() if name.startswith("prompt_extend_") and value not in (None, False)]
    if given and not values.get("use_prompt_extend"):
        raise RequestError(f"--{given[0].replace('_', '-')} does nothing without --use-prompt-extend; give it too")


def make_extender(values: Mapping[str, Any], *, has_images: bool, log: Callable[[str], None]) -> Extender:
    """What the options ask for, checked without a network. Raises as :func:`wan_core.prompt_extend.choose_model`."""
    options = ExtendOptions(
        method=values["prompt_extend_method"] or _DEFAULTS.method,
        model=values["prompt_extend_model"],
        language=values["prompt_extend_target_lang"] or _DEFAULTS.language,
        fallback=values["prompt_extend_fallback"],
        timeout=values["prompt_extend_timeout"] or _DEFAULTS.timeout,
        max_tokens=values["prompt_extend_max_tokens"],
    )
    chosen = choose_model(options, has_images=has_images)
    if chosen.sees is False and has_images:
        log(f"note: {chosen.name} sees no pictures; it extends the prompt by its words alone")
    path = values["prompt_extend_keep"]
    return Extender(chosen, options, kept=None if path is None else KeptPrompts(path), log=log)


def plan_extension(values: Mapping[str, Any], jobs: Sequence[Job], log: Callable[[str], None]) -> Extender | None:
    """The extender of planned videos, None where their prompts stay. Raises as :func:`make_extender`."""
    ideas = [job.idea for job in jobs if job.idea is not None]
    if not ideas:
        return None
    extender = make_extender(values, has_images=any(idea.images for idea in ideas), log=log)
    for idea in ideas:
        extender.check(idea)
    return extender


def extend_jobs(
    jobs: Sequence[Job], extender: Extender | None, device: str, log: Callable[[str], None]
) -> Sequence[Job]:
    """The same videos, with an ``extender`` of extended prompts; of several processes the first one asks.

    Raises as :meth:`wan_core.prompt_extend.Extender.extend`.
    """
    from wan_core.runtime import launched, made_by_first

    if extender is None:
        return jobs
    ideas = [job.idea for job in jobs if job.idea is not None]

    def make() -> str:
        return json.dumps([asdict(each) for each in extender.extend(ideas, device)])

    made = [Extension(**each) for each in json.loads(made_by_first(launched(), "extended-prompts", make))]
    for text in dict.fromkeys(each.prompt for each in made if each.error is None):
        log(f"prompt extended by {extender.chosen.name}: {text}")
    return [_with(job, each) for job, each in zip(jobs, made, strict=True)]


def with_prompt(result: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """A result with its video's prompt, where that was extended."""
    return {**result, **({"prompt": job.extension.prompt} if job.extension else {})}


def _with(job: Job, extension: Extension) -> Job:
    request = replace(job.inputs.request, prompt=extension.prompt)
    return replace(job, inputs=replace(job.inputs, request=request), idea=None, extension=extension)
