"""The import arrows hold here, and a wrong import is caught."""

from pathlib import Path

import pytest

from tools.check_arrows import check

ROOT = Path(__file__).resolve().parents[2]
CORE = "packages/wan-core/src/wan_core/"
POZE = "packages/poze/src/poze/"
PI3 = "packages/pi3/src/pi3/"
TREE = {
    CORE + "__init__.py": "",
    CORE + "errors.py": "class WanError(Exception): ...\n",
    CORE + "cli/__init__.py": "import click\n",
    CORE + "models/__init__.py": "from wan_core.models.dit.model import WanDiT\n__all__ = ['WanDiT']\n",
    CORE + "models/dit/__init__.py": "",
    CORE + "models/dit/model.py": "import torch\nfrom wan_core.errors import WanError\nclass WanDiT: ...\n",
    CORE + "pipeline.py": "class Pipeline: ...\n",
    PI3 + "__init__.py": "",
    POZE + "__init__.py": "from wan_core import WanError\nfrom wan_core.models import WanDiT\nimport pi3\n",
}
WRONG = [
    ("models/dit/model.py", "from wan_core.sampling import sample\n", "models may import only errors, lazy"),
    ("models/dit/model.py", "import numpy\n", "models here import only einops, torch"),
    ("models/vae/a.py", "import transformers\n", "models here import only einops, torch"),
    (
        "sampling/a.py",
        "def f():\n    from wan_core.models import WanDiT\n",
        "sampling may import only errors, lazy,",
    ),
    ("sampling/a.py", "from ..models.dit import model\n", "sampling may import only errors, lazy,"),
    ("media/a.py", "import importlib\nimportlib.import_module('wan_core.runtime')\n", "media may not import runtime"),
    ("media/a.py", "from wan_core import cli\n", "media may not import cli"),
    ("checkpoints/a.py", "import wan_core.runtime.apply\n", "checkpoints may not import runtime"),
    ("checkpoints/a.py", "from wan_core.sampling import sample\n", "checkpoints may not import sampling"),
    ("tasks/a.py", "from wan_core.checkpoints import read_weights\n", "tasks may import only"),
    ("pipeline.py", "from wan_core.loading import load_pipeline\n", "pipeline may not import loading"),
    ("odd/a.py", "from wan_core.errors import WanError\n", "wan_core.odd has no layer"),
    ("media/a.py", "import diffusers\n", "diffusers is for tests only"),
    ("tasks/a.py", "import poze\n", "wan_core may not import poze"),
    ("__init__.py", "import torch\n", "importing wan_core imports torch"),
    ("__init__.py", "from wan_core.models import WanDiT\n", "importing wan_core imports torch"),
    ("errors.py", "import numpy as np\n", "importing wan_core.errors imports numpy"),
    ("cli/__init__.py", "from wan_core import models\n", "importing wan_core.cli imports torch"),
]
WRONG_PROJECTS = [
    (POZE + "a.py", "from wan_core.models.dit.model import WanDiT\n", "deeper than two"),
    (POZE + "a.py", "def f():\n    import wan_core.models.dit\n", "deeper than two"),
    (POZE + "a.py", "from wan_core.models import Block\n", "does not export Block"),
    (POZE + "a.py", "from wan_core.errors import WanError\n", "wan_core.errors is not one of the subpackages open"),
    (POZE + "a.py", "from wan_core import errors\n", "wan_core.errors is not one of the subpackages open"),
    (POZE + "a.py", "from wan_core.pipeline import _hidden\n", "does not export _hidden"),
    (PI3 + "model.py", "from wan_core.media import read_image\n", "is a network and may import only the errors"),
    (PI3 + "dinov2/a.py", "from wan_core.models import WanDiT\n", "is a network and may import only the errors"),
    (PI3 + "cli.py", "import poze\n", "pi3 may not import poze"),
]
ON_DEMAND = """from typing import TYPE_CHECKING
from wan_core.lazy import on_demand
if TYPE_CHECKING:
    from wan_core.models.dit import WanDiT
    from wan_core.models.vae import VAEConfig
else:
    __getattr__, __dir__ = on_demand(__name__)
__all__ = ["VAEConfig", "WanDiT"]
"""
DIT_ON_DEMAND = ON_DEMAND.replace("models.dit ", "models.dit.model ").replace("models.vae", "models.dit.config")
FINE = [
    (CORE + "__init__.py", "def __getattr__(name):\n    from wan_core.models import WanDiT\n"),
    (CORE + "errors.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"),
    (CORE + "models/image/clip.py", "import transformers\n"),
    (CORE + "loading.py", "from wan_core.pipeline import Pipeline\n"),
    (CORE + "__main__.py", "from wan_core.cli import main\n"),
    (PI3 + "model.py", "from wan_core import ConfigError\n"),
    (PI3 + "cli.py", "from wan_core.media import read_image\nfrom wan_core import WanError\n"),
    (POZE + "a.py", "from wan_core.pipeline import Pipeline\n"),
]


def write(root: Path, name: str, text: str) -> Path:
    for path, content in {**TREE, name: text}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return root


def test_this_tree_has_no_wrong_import() -> None:
    assert check(ROOT) == []


@pytest.mark.parametrize(("name", "text", "fault"), [(CORE + n, t, f) for n, t, f in WRONG] + WRONG_PROJECTS)
def test_a_wrong_import_is_caught(tmp_path: Path, name: str, text: str, fault: str) -> None:
    faults = check(write(tmp_path, name, text))
    assert faults
    assert all(fault in line for line in faults), faults


@pytest.mark.parametrize(("name", "text"), FINE)
def test_a_right_import_is_left_alone(tmp_path: Path, name: str, text: str) -> None:
    assert check(write(tmp_path, name, text)) == []


@pytest.mark.parametrize(
    ("text", "is_heavy"),
    [
        ("from wan_core.models import WanDiT\n", True),
        ("def f():\n    from wan_core.models import WanDiT\n", False),
        ("from wan_core.models import VAEConfig\n", False),
        ("from wan_core import models\n", False),
        ("import wan_core.models.dit.model\n", True),
    ],
)
def test_a_package_that_exports_on_demand_brings_in_what_is_asked_of_it(
    tmp_path: Path, text: str, is_heavy: bool
) -> None:
    write(tmp_path, CORE + "lazy.py", "def on_demand(package): ...\n")
    for name, content in (
        ("models/__init__.py", ON_DEMAND),
        ("models/dit/__init__.py", DIT_ON_DEMAND),
        ("models/dit/config.py", "class VAEConfig: ...\n"),
        ("models/vae/__init__.py", "from wan_core.models.dit.config import VAEConfig\n"),
        ("cli/__init__.py", text),
    ):
        (tmp_path / CORE / name).parent.mkdir(exist_ok=True)
        (tmp_path / CORE / name).write_text(content)
    (tmp_path / POZE / "a.py").write_text("from wan_core.models import VAEConfig, WanDiT\n")
    heavy = f"importing wan_core.cli imports torch (in {CORE}models/dit/model.py); import it where it is used"
    assert [fault for fault in check(tmp_path) if "wan_core.cli " in fault] == [heavy] * is_heavy


def test_the_preset_of_a_project_brings_in_no_torch_by_way_of_the_core(tmp_path: Path) -> None:
    (fault,) = check(write(tmp_path, POZE + "presets.py", "from wan_core.models import WanDiT\n"))
    assert fault.startswith("importing poze.presets imports torch")


def test_modules_that_import_each_other_are_named_even_for_types(tmp_path: Path) -> None:
    write(
        tmp_path,
        CORE + "media/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from wan_core.media import b\n",
    )
    root = write(tmp_path, CORE + "media/b.py", "def f():\n    from wan_core.media.a import g\n")
    assert check(root) == ["these modules import each other: wan_core.media.a, wan_core.media.b"]


def test_two_public_classes_of_one_name_are_named(tmp_path: Path) -> None:
    write(tmp_path, CORE + "media/a.py", "class Clip:\n    pass\n\n\nclass _Own:\n    pass\n")
    root = write(tmp_path, CORE + "media/b.py", "class Clip:\n    pass\n\n\nclass _Own:\n    pass\n")
    (fault,) = check(root)
    assert fault.startswith("two public classes are called Clip")


def test_modules_of_tools_that_import_each_other_are_named(tmp_path: Path) -> None:
    write(tmp_path, "tools/small/a.py", "def f():\n    from tools.small import b\n")
    root = write(tmp_path, "tools/small/b.py", "from tools.small.a import f\n")
    assert check(root) == ["these modules import each other: tools.small.a, tools.small.b"]


@pytest.mark.parametrize(
    ("name", "text", "is_used"),
    [
        ("packages/wan-core/tests/test_a.py", "from wan_core.media import read\n", False),
        (CORE + "media/c.py", "from wan_core.media import read\n", False),
        (CORE + "runtime.py", "from wan_core import media\nmedia.read()\n", True),
        ("tools/a.py", "def f():\n    from wan_core.media import read\n", True),
        ("docs/a.md", "```python\nfrom wan_core.media import read\n```\n", True),
        ("docs/a.md", "```bash\nfrom wan_core.media import read\n```\n", False),
        ("packages/poze/pyproject.toml", "[project.scripts]\nread = 'wan_core.media:read'\n", True),
    ],
)
def test_an_export_that_nothing_outside_uses_is_named(tmp_path: Path, name: str, text: str, is_used: bool) -> None:
    write(tmp_path, CORE + "media/__init__.py", "from wan_core.media.a import read\n__all__ = ['read']\n")
    faults = check(write(tmp_path, name, text))
    home = CORE + "media/__init__.py"
    assert faults == ([] if is_used else [f"{home}: nothing outside uses the exported read; take it out of __all__"])


def test_a_name_that_is_used_needs_no_excuse(tmp_path: Path) -> None:
    write(
        tmp_path,
        CORE + "tasks/__init__.py",
        "from wan_core.tasks.flf2v import FLF2VRequest\n__all__ = ['FLF2VRequest']\n",
    )
    assert check(tmp_path) == []
    (fault,) = check(write(tmp_path, POZE + "a.py", "from wan_core.tasks import FLF2VRequest\n"))
    assert fault.endswith("drop its line in EXPORTED")
