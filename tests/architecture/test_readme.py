"""The README's two commands stand where tools look for them, and set everything up by themselves."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FENCE = r"^<!-- {} -->\n```[a-z]*\n(.+?)\n```$"


def command(name: str) -> str:
    found = re.search(FENCE.format(name), (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no fenced block directly under <!-- {name} -->"
    return found[1]


def test_main_command_writes_a_video_inside_the_checkout() -> None:
    text = command("main command")
    assert text.startswith("python -m pip install uv && uv run wan generate")
    output = re.search(r"--output (\S+\.mp4)", text)
    assert output
    assert not output[1].startswith(("/", "..", "docs/"))


def test_test_command_installs_uv_and_runs_pytest() -> None:
    assert command("test command") == "python -m pip install uv && uv run pytest -n 2"


def test_ci_reads_the_test_command_from_the_readme() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    function = re.search(r"^readme_command\(\).*?^}", script, re.MULTILINE | re.DOTALL)
    assert function
    shell = ["bash", "-c", f'{function[0]}\nreadme_command "test command"']
    output = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output == command("test command") + "\n"
