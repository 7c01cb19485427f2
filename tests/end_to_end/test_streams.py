"""Where a command's own output goes: full, closed or nowhere, it is never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WAN = [sys.executable, "-m", "wan_core"]
COMMANDS = {"--help": 0, "show none": 2}


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("command", ["presets", "--help"])
def test_a_standard_output_without_room_is_a_sentence(command: str, tmp_path: Path) -> None:
    words = f"ulimit -f 0; {' '.join([*WAN, command])} > {tmp_path}/out"
    result = shell(words)
    assert result.returncode == 4
    assert result.stderr == "Error: cannot write to standard output: File too large\n"
    assert shell(f"{words} 2> {tmp_path}/err").returncode == 4


@pytest.mark.parametrize(("command", "code"), COMMANDS.items())
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_closed_streams_change_nothing(command: str, code: int, closed: str) -> None:
    result = shell(f"{' '.join([*WAN, command])} {closed}")
    assert result.returncode == code
    assert "Traceback" not in result.stdout + result.stderr


def test_a_reader_that_leaves_is_no_error_to_tell() -> None:
    result = shell(f"{' '.join([*WAN, 'presets'])} | true")
    assert result.stderr == ""


@pytest.mark.slow
def test_without_a_home_and_an_entry_of_the_user() -> None:
    unshared = shell(f"unset HOME; {' '.join([*WAN, 'generate --prompt a --frame-num 1 --sample-steps 1 --dry-run'])}")
    assert unshared.returncode == 0, unshared.stderr
