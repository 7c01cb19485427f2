"""The style limits hold here, and a file that breaks a limit is caught."""

from pathlib import Path

import pytest

from tools.check_style import check

ROOT = Path(__file__).resolve().parents[2]
SRC = "packages/wan-core/src/wan_core"
LONG_FUNCTION = "def f() -> None:\n    '''Do.'''\n" + "    f()\n" * 60
BRANCHES = "def f(a: int) -> None:\n    '''Do.'''\n" + "    if a:\n        f(a)\n" * 15
TWENTY_LINES = "".join(f"name_{i} = {i}\n" for i in range(20))

BROKEN = [
    ("file-length", "media/a.py", "a = 1\n" * 400),
    ("function-length", "media/a.py", LONG_FUNCTION),
    ("complexity", "media/a.py", BRANCHES),
    ("complexity", "media/a.py", "f = 1\ndef g(a: int) -> bool:\n    '''Do.'''\n    return " + " or ".join(["a"] * 16)),
    ("cuda", "models/a.py", "DEVICE = 'cuda:0'\n"),
    ("cuda", "models/a.py", "import torch\nok = torch.cuda.is_available()\n"),
    ("cuda", "models/a.py", "from torch import cuda\n"),
    ("torch-load", "checkpoints/load.py", "import torch\nw = torch.load('w.pth')\n"),
    ("torch-load", "checkpoints/load.py", "from torch import load\n"),
    ("print", "media/a.py", "print('done')\n"),
    ("except-exception", "media/a.py", "try:\n    a = 1\nexcept Exception:\n    a = 2\n"),
    ("except-exception", "media/a.py", "try:\n    a = 1\nexcept (ValueError, BaseException):\n    a = 2\n"),
    ("except-exception", "media/a.py", "try:\n    a = 1\nexcept:\n    a = 2\n"),
    ("sys.path", "media/a.py", "import sys\nsys.path.append('x')\n"),
    ("types.MethodType", "media/a.py", "import types\nf = types.MethodType\n"),
    ("types.MethodType", "media/a.py", "from types import MethodType\n"),
    ("wildcard-import", "media/a.py", "from math import *\n"),
    ("assert-input", "media/a.py", "def f(size: int) -> None:\n    '''Do.'''\n    assert size > 0\n"),
    ("annotation", "media/a.py", "def _f(size):\n    return size\n"),
    ("docstring", "media/a.py", "def f() -> None:\n    pass\n"),
    ("vague-name", "media/utils.py", "a = 1\n"),
    ("vague-name", "media/a.py", "class DeviceManager:\n    '''One.'''\n"),
    ("ascii", "media/a.py", "a = 1  # caf\u00e9\n"),
]
FINE = [
    ("runtime/devices.py", "import torch\nDEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'\n"),
    ("checkpoints/readers/reader.py", "import torch\nw = torch.load('w.pth', weights_only=True)\n"),
    (
        "media/a.py",
        "def f(size: int) -> int:\n    '''Never cuda.'''\n    total = size + 1\n    assert total\n    return total\n",
    ),
    ("media/a.py", "NAMES = (\n    'caf\u00e9',\n)\nOTHER: str = 'caf\u00e9'\n"),
    ("media/a.py", "HELP = 'one of cpu, cuda or mps'\n"),
]


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / SRC / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def rules(root: Path) -> list[str]:
    return [offence.rule for offence in check(root, {}).offences]


def test_this_tree_keeps_the_limits() -> None:
    assert [str(offence) for offence in check(ROOT).offences] == []


@pytest.mark.parametrize(("rule", "name", "text"), BROKEN)
def test_a_broken_limit_is_caught(tmp_path: Path, rule: str, name: str, text: str) -> None:
    assert rules(write(tmp_path, {name: text})) == [rule]


@pytest.mark.parametrize(("name", "text"), FINE)
def test_what_has_its_place_is_left_alone(tmp_path: Path, name: str, text: str) -> None:
    assert rules(write(tmp_path, {name: text})) == []


def test_lines_shared_by_two_files_are_caught(tmp_path: Path) -> None:
    write(tmp_path, {"media/a.py": TWENTY_LINES, "media/b.py": "# why\n" + TWENTY_LINES.replace(" = ", "  =  ")})
    report = check(tmp_path, {})
    assert [offence.rule for offence in report.offences] == ["shared-lines"]
    assert report.largest["shared lines, %"][0] == 100


def test_five_shared_lines_are_no_run(tmp_path: Path) -> None:
    five = "".join(TWENTY_LINES.splitlines(keepends=True)[:5])
    assert rules(write(tmp_path, {"media/a.py": five + "a = 1\n", "media/b.py": five + "b = 1\n"})) == []


def test_the_allow_list_excuses_and_may_not_go_stale(tmp_path: Path) -> None:
    write(tmp_path, {"media/a.py": "print('done')\n"})
    used = {("print", f"{SRC}/media/a.py"): "a reason"}
    assert check(tmp_path, used).offences == []
    stale = used | {("cuda", f"{SRC}/media/a.py"): "a reason"}
    assert [offence.rule for offence in check(tmp_path, stale).offences] == ["allow-list"]


def test_a_room_over_its_budget_and_a_file_without_one_are_caught(tmp_path: Path) -> None:
    files = {f"presets/a{number}.py": "".join(f"n{number}_{i} = {i}\n" for i in range(360)) for number in range(2)}
    (offence,) = check(write(tmp_path, files), {}).offences
    assert (offence.rule, offence.path) == ("budget", "wan_core/presets/")
    assert offence.detail == "720 lines, at most 700"
    write(tmp_path, {"presets/a1.py": "a = 1\n", "rumpus/a.py": "a = 1\n"})
    (offence,) = check(tmp_path, {}).offences
    assert (offence.rule, offence.path) == ("budget", f"{SRC}/rumpus/a.py")
