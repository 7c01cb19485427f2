"""Ctrl-C and SIGTERM end a run soon, with the signal's exit status and nothing left behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_and_leaves_nothing(number: signal.Signals, status: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wan_core", "generate", "--prompt", "a red circle", "--sample-steps", "1000"]
    process = subprocess.Popen(
        [*command, "--output", "v.mp4"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        # A shell's background job ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert process.stderr is not None
    seen = ""
    while "denoise" not in seen and process.poll() is None:
        seen += process.stderr.read(1)
    time.sleep(0.5)
    process.send_signal(number)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == status, seen + rest
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []
