"""Every command of the docs that needs no real weights runs, and so does every Python example."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from bindweave.cli import bindweave
from poze.cli import poze
from poze.cli.infer import infer
from selfforcing_unianimate.cli import sfu
from wan_core.cli import wan
from wan_mi2v.cli import mi2v

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("packages/*/README.md"))]
LONG_PAGES = ("tiny-models", "sfu", "mi2v")  # many seconds of videos
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NEEDS_WEIGHTS = (
    "--ckpt-dir",
    "--ckpt_dir",
    "--ckpt_path",
    "--wan-ckpt-dir",
    "wan download",
    "wan verify",
    "wan inspect",
    "wan convert",
    "wan merge-lora",
    "wan train",
    "wan cache",
    "--detector-dir",
    "sfu download",
    "sfu pose",
    "sfu teacher",
    "sfu make-targets",
    "sfu distill",
    "sfu merge-lora",
    "torchrun",
    "bindweave download",
    "bindweave convert",
    "bindweave train",
    "bindweave import-features",
    "bindweave infer",
)
SCRIPTS = {"wan": wan, "mi2v": mi2v, "poze": poze, "poze-infer": infer, "sfu": sfu, "bindweave": bindweave}
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(page: Path) -> list[list[str]]:
    """The lines of a page that run one of SCRIPTS, as words from the script's name on."""
    found = []
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.split(" #")[0].rpartition("&& ")[2])
            if words[:2] == ["uv", "run"] and words[2] in SCRIPTS and not any(word in line for word in NEEDS_WEIGHTS):
                found.append(words[2:])
    return found


@pytest.fixture
def in_checkout(run: Callable[..., Result], tmp_path: Path) -> Callable[..., Result]:
    """Run a command in a folder where the checkout's test data lie as the docs name them."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "data").symlink_to(ROOT / "tests" / "data")
    return run


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] * (page.stem in LONG_PAGES)) for page in PAGES if commands(page)],
    ids=lambda page: page.stem,
)
def test_commands_of_a_page_run(page: Path, in_checkout: Callable[..., Result]) -> None:
    for words in commands(page):
        result = in_checkout(*words[1:], command=SCRIPTS[words[0]])
        assert result.exit_code == 0, f"{' '.join(words)}: {result.output}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
@pytest.mark.usefixtures("in_checkout")
def test_python_examples_of_a_page_run(page: Path) -> None:
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
