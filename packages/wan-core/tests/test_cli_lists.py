"""Options with several values, and how a task's request fields become options."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from wan_core.cli import COMMANDS
from wan_core.cli.jobs import numbered
from wan_core.cli.options import ListCommand, ListOption, one_value_each, task_options
from wan_core.errors import RequestError
from wan_core.tasks import GenerationRequest


def parse_pair(text: str) -> tuple[int, ...]:
    if text.count("-") != 1:
        raise RequestError(f"a pair is A-B, got {text!r}")
    return tuple(int(part) for part in text.split("-"))


@dataclass(frozen=True, kw_only=True)
class ListRequest(GenerationRequest):
    images: tuple[Path, ...] = field(default=(), metadata={"option": ("--images",), "help": "Pictures."})
    pair: tuple[int, ...] | None = field(
        default=None, metadata={"option": ("--pair",), "help": "A pair.", "parse": parse_pair, "metavar": "A-B"}
    )
    flag: bool = field(default=False, metadata={"option": ("--flag",), "help": "A flag."})
    count: int | None = field(default=None, metadata={"option": ("--count",), "help": "A number."})
    sheet: Path | None = field(default=None, metadata={"option": ("--sheet",), "help": "A file.", "output": True})
    hidden: str = field(default="", metadata={"recorded": False})


def invoke(*words: str) -> tuple[Result, dict[str, Any]]:
    """Run a command with the options of ``ListRequest``, ``--prompt`` and ``-o``; returns the parsed values too."""
    found: dict[str, Any] = {}
    command = ListCommand(
        "list",
        params=[
            click.Option(["--prompt"]),
            click.Option(["--output", "-o"]),
            click.Option(["--size"], nargs=2, type=int),
            *task_options(ListRequest),
        ],
        callback=lambda **values: found.update(values),
    )
    return CliRunner().invoke(command, list(words)), found


PICTURES = (Path("a.png"), Path("b.png"))

GOOD: dict[str, tuple[list[str], dict[str, Any]]] = {
    "several values": (["--images", "a.png", "b.png"], {"images": PICTURES}),
    "none given": ([], {"images": (), "pair": None, "flag": False, "count": None, "sheet": None}),
    "one value": (["--images", "a.png"], {"images": PICTURES[:1]}),
    "up to the next option": (["--images", "a.png", "b.png", "--prompt", "p"], {"images": PICTURES, "prompt": "p"}),
    "after another option": (["--prompt", "p", "--images", "a.png", "b.png"], {"images": PICTURES, "prompt": "p"}),
    "given twice": (["--images", "a.png", "--flag", "--images", "b.png"], {"images": PICTURES, "flag": True}),
    "with an equals sign": (["--images=a.png", "b.png"], {"images": PICTURES}),
    "value with a dash": (["--images=-a.png", "b.png"], {"images": (Path("-a.png"), Path("b.png"))}),
    "value with an equals sign": (["--images", "a=b.png"], {"images": (Path("a=b.png"),)}),
    "single dash": (["--images", "-", "a.png"], {"images": (Path("-"), Path("a.png"))}),
    "name as another's value": (["--prompt", "--images", "--flag"], {"prompt": "--images", "flag": True, "images": ()}),
    "name as a short one's value": (["-o", "--images", "--flag"], {"output": "--images", "flag": True}),
    "after an option of two values": (["--size", "1", "2", "--images", "a.png"], {"size": (1, 2)}),
    "number": (["--count", "3", "--images", "a.png"], {"count": 3}),
    "parsed": (["--pair", "3-4"], {"pair": (3, 4)}),
}


@pytest.mark.parametrize("name", GOOD)
def test_lists_are_read(name: str) -> None:
    words, expected = GOOD[name]
    result, found = invoke(*words)
    assert result.exit_code == 0, result.output
    assert {key: found[key] for key in expected} == expected


BAD: dict[str, tuple[list[str], str]] = {
    "no value at the end": (["--images"], "'--images' requires one value or more"),
    "no value before an option": (["--images", "--prompt", "p"], "'--images' requires one value or more"),
    "no value after a repeat": (["--images", "a.png", "--images"], "'--images' requires one value or more"),
    "empty value": (["--images", "a.png", ""], "none of them empty"),
    "empty value after an equals sign": (["--images="], "none of them empty"),
    "stray word before": (["a.png", "--images", "b.png"], "unexpected extra argument"),
    "word after the end of options": (["--images", "a.png", "--", "b.png"], "unexpected extra argument"),
    "misspelled": (["--image", "a.png"], "--image"),
    "parse error": (["--pair", "34"], "a pair is A-B, got '34'"),
}


@pytest.mark.parametrize("name", BAD)
def test_lists_without_values_are_refused(name: str) -> None:
    words, message = BAD[name]
    result, _ = invoke(*words)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_words_of_other_commands_stay_as_they_are() -> None:
    words = ["--prompt", "a", "b", "--", "--images", "c"]
    assert one_value_each(words, [click.Option(["--prompt"])]) == words


def test_the_help_shows_that_a_list_takes_several_values() -> None:
    assert "--images PATH..." in invoke("--help")[0].output


def test_a_list_needs_no_values_to_be_listed_among_options() -> None:
    kinds = {option.name: type(option) for option in task_options(ListRequest)}
    assert kinds["images"] is ListOption
    assert "hidden" not in kinds


def test_outputs_and_unrecorded_fields_stay_out_of_the_settings() -> None:
    request = ListRequest(prompt="p", images=PICTURES, sheet=Path("s.png"), hidden="x")
    assert request.record() == {"prompt": "p", "seed": 0, "images": ["a.png", "b.png"], "flag": False}


def test_files_of_several_videos_get_numbers() -> None:
    assert numbered(Path("x/s.png"), 0, 1) == Path("x/s.png")
    assert numbered(Path("x/s.png"), 2, 3) == Path("x/s-0002.png")
    assert numbered(Path("x/%04d.png"), 2, 3) == Path("x/0002/%04d.png")


@pytest.mark.parametrize("name", ["train", "cache"])
def test_every_option_with_a_value_says_its_default(name: str) -> None:
    command = COMMANDS[name].load()
    context = click.Context(command)
    options = [each for each in command.params if isinstance(each, click.Option) and each.expose_value]
    ours = [each for each in options if each.secondary_opts or not (each.is_flag or each.multiple)]
    helps = {each.opts[0]: (each.get_help_record(context) or ("", ""))[1] for each in ours}
    silent = [option.opts[0] for option in ours if "[default:" not in helps[option.opts[0]]]
    assert [each for each in silent if each not in ("--ckpt-dir", "--cache", "--output")] == []
