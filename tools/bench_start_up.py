"""What commands cost before there is a tensor: their CPU time, user and system, beside that of ``import torch``.

Every measurement is a process of its own. CPU time says more than wall time here: other work on the machine hardly
changes it, and it does not hide what runs in several threads.
"""

import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tools.bench_peers import Settings, Sides

ROOT = Path(__file__).resolve().parents[1]
README_COMMAND = re.compile(r"<!-- main command -->\s+```bash\n[^\n]*uv run wan ([^\n]+)\n")

# Row: the words after `wan`, None for the README's, and the largest share of import torch. What needs no tensor must
# need no torch, a request that is wrong included; the README's makes a video besides.
START_UP: Mapping[str, tuple[Sequence[str] | None, float]] = {
    "start-help": (["--help"], 0.4),
    "start-generate-help": (["generate", "--help"], 0.4),
    "start-presets": (["presets"], 0.4),
    "start-unknown-task": (["generate", "nonsense"], 0.4),
    "start-task-help": (["generate", "ti2v-5B", "--help"], 0.4),
    "start-train-help": (["train", "--help"], 0.4),
    "start-wrong-option": (["generate", "tiny-t2v", "--frobnicate"], 0.4),
    "start-wrong-frames": (["generate", "--prompt", "p", "--frame-num", "80"], 0.4),
    "start-wrong-size": (["generate", "--prompt", "p", "--size", "65*64"], 0.4),
    "start-unreadable-image": (["generate", "--prompt", "p", "--image", "unreadable.png"], 0.4),
    "start-readme-command": (None, 1.5),
}

WAN = "from wan_core.cli import main\nmain()\n"
# Prints the CPU seconds of sampling, which are what a video costs however it is started. The command comes first, as
# always: it lets waiting threads sleep, which must be said before torch is loaded.
WAN_TIMED = """
import time
import wan_core.cli
from wan_core.pipeline import Pipeline

denoise = Pipeline.denoise


def timed(*given, **named):
    begin = time.process_time()
    try:
        return denoise(*given, **named)
    finally:
        print("sampling:", time.process_time() - begin)


Pipeline.denoise = timed
"""


def start_up(settings: Settings, row: str) -> Sides:
    """Ours: a command without its sampling; theirs: ``import torch``. The first run of each warms the disk's cache."""
    words = START_UP[row][0]
    (settings.folder / "unreadable.png").write_bytes(bytes(256))
    code, given = (WAN, words) if words is not None else (WAN_TIMED + WAN, readme_words())
    ours = partial(cpu_seconds, settings.folder, code, *given)
    theirs = partial(cpu_seconds, settings.folder, "import torch")
    return Sides(ours, theirs, partial(_warm, ours, theirs))


def readme_words() -> list[str]:
    """The words after ``wan`` of the README's main command."""
    match = README_COMMAND.search((ROOT / "README.md").read_text(encoding="utf-8"))
    if match is None:
        raise ValueError("README.md has no main command that begins with: uv run wan")
    return shlex.split(match[1])


def cpu_seconds(folder: Path, code: str, *words: str) -> float:
    """User and system time of a Python process that runs ``code`` in ``folder``, less the sampling that it reports.

    Raises ValueError when the process fails by anything but an error of ours.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if "Traceback" in done.stderr or done.returncode < 0:
        raise ValueError(f"{shlex.join(words) or code}: {done.stderr[-500:]}")
    sampling = sum(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("sampling: "))
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime - sampling


def _warm(*sides: Callable[[], float]) -> None:
    for side in sides:
        side()
