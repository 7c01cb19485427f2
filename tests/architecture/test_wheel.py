"""The built wheels install and run in an empty environment; wan-core's imports nothing heavy to say hello."""

import os
import re
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
BUILT = {path.name: path.name.replace("-", "_") for path in PACKAGES}
EXTRAS = {"pi3": "pi3[cli,glb]"}
HEAVY = {"torch", "transformers", "numpy", "av", "PIL"}


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    result = subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}: {result.stdout}\n{result.stderr}"
    return result


def imported_packages(import_log: str) -> set[str]:
    """Top-level names in what ``-X importtime`` wrote."""
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in import_log.splitlines() if "|" in line}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    for package in BUILT:
        run("uv", "build", "--package", package, "--out-dir", folder)
    return folder


@pytest.fixture(scope="module")
def environment(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment that has the wheels and the locked versions of what they need."""
    folder = tmp_path_factory.mktemp("empty")
    pins, python = folder / "pins.txt", folder / "venv/bin/python"
    run("uv", "export", "--quiet", "--no-hashes", "--no-emit-workspace", "--all-packages", "--output-file", pins)
    run("uv", "venv", "--quiet", "--python", sys.executable, folder / "venv")
    # Links instead of copies: torch alone is gigabytes, and the environment is gone after the test.
    install = ["uv", "pip", "install", "--link-mode", "symlink", "--python", python, "--constraints", pins]
    run(*install, "--find-links", dist, *(EXTRAS.get(package, package) for package in BUILT))
    return python.parent


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_changelog_starts_with_the_version_of_the_package(package: Path) -> None:
    version = tomllib.loads((package / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## (\S+)", (package / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == version


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_package_cannot_be_uploaded(package: Path) -> None:
    assert (
        "Private :: Do Not Upload" in tomllib.loads((package / "pyproject.toml").read_text())["project"]["classifiers"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("package", BUILT)
def test_wheel_holds_the_code_its_licence_and_no_tests(package: str, dist: Path) -> None:
    module = BUILT[package]
    (wheel,) = dist.glob(f"{module}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert f"{module}/py.typed" in names
    assert any(re.fullmatch(module + r"-[^/]+\.dist-info/licenses/LICENSE", name) for name in names)
    assert not [name for name in names if not name.startswith((f"{module}/", f"{module}-"))]
    folder = f"packages/{package}/src"
    sources = {path.relative_to(ROOT / folder).as_posix() for path in _tracked(folder)}
    assert sources <= set(names), sorted(sources - set(names))[:5]


@pytest.mark.slow
@pytest.mark.parametrize("module", BUILT.values())
def test_source_archive_holds_what_a_rebuild_needs(module: str, dist: Path) -> None:
    (archive,) = dist.glob(f"{module}-*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", f"src/{module}/__init__.py"} <= names


def _tracked(folder: str) -> list[Path]:
    return [ROOT / name for name in run("git", "ls-files", folder).stdout.splitlines()]


@pytest.mark.slow
def test_installed_wheel_imports_and_helps_without_torch(
    environment: Path, record_property: Callable[[str, object], None]
) -> None:
    commands = {
        "import wan_core": [environment / "python", "-c", "import wan_core"],
        "wan --help": [environment / "wan", "--help"],
    }
    for name, command in commands.items():
        log = run(*command, PYTHONPROFILEIMPORTTIME="1").stderr
        assert not imported_packages(log) & HEAVY, name
        start = time.perf_counter()
        run(*command)
        seconds = time.perf_counter() - start
        record_property(name, round(seconds, 3))
        assert seconds < 5, f"{name} took {seconds:.2f} s"


@pytest.mark.slow
def test_the_wheel_of_mi2v_adds_its_command_and_its_tasks(environment: Path) -> None:
    assert re.fullmatch(r"mi2v \d+\.\d+\.\d+\n", run(environment / "mi2v", "--version").stdout)
    picture = ROOT / "tests/data/moving_circle/00.png"
    assert '"preset": "tiny-mi2v"' in run(
        environment / "mi2v", "--images", picture, "--prompt", "p", "--dry-run", "--json"
    ).stdout  # fmt: skip
    assert "mi2v-5B" in run(environment / "wan", "presets").stdout


@pytest.mark.slow
def test_the_wheel_of_pi3_brings_its_model_and_its_command(environment: Path) -> None:
    assert re.fullmatch(r"pi3 \d+\.\d+\.\d+\n", run(environment / "pi3", "--version").stdout)
    assert "abs_rel" in run(environment / "pi3", "inspect").stdout


@pytest.mark.slow
def test_the_wheel_of_poze_adds_its_commands_and_its_tasks(environment: Path) -> None:
    for command in ("poze", "poze-infer", "poze-finetune", "poze-download"):
        assert re.fullmatch(command + r" \d+\.\d+\.\d+\n", run(environment / command, "--version").stdout)
    picture = ROOT / "tests/data/moving_circle/00.png"
    assert '"preset": "tiny-poze"' in run(environment / "poze-infer", "--image", picture, "--dry-run", "--json").stdout
    assert "poze-5B" in run(environment / "wan", "presets").stdout


@pytest.mark.slow
def test_the_wheel_of_sfu_adds_its_command_and_its_models(environment: Path) -> None:
    assert re.fullmatch(r"sfu \d+\.\d+\.\d+\n", run(environment / "sfu", "--version").stdout)
    told = run(environment / "sfu", "--help").stdout
    assert all(f"  {name} " in told for name in ("infer", "doctor", "download", "pose", "merge-lora", "teacher"))
    assert '"preset": "sfu-1.3B"' in run(environment / "sfu", "infer", "--prompt", "p", "--dry-run", "--json").stdout
    models = run(environment / "wan", "presets").stdout
    assert all(name in models for name in ("sfu-1.3B", "tiny-sfu", "unianimate-14B"))


@pytest.mark.slow
def test_the_wheel_of_bindweave_adds_its_command(environment: Path) -> None:
    assert re.fullmatch(r"bindweave \d+\.\d+\.\d+\n", run(environment / "bindweave", "--version").stdout)
    told = run(environment / "bindweave", "--help").stdout
    assert all(f"  {name} " in told for name in ("convert", "download", "infer"))
    assert "bindweave-14B" in run(environment / "wan", "presets").stdout


@pytest.mark.slow
def test_the_model_of_pi3_imports_only_errors_and_lazy_imports_of_the_core(environment: Path) -> None:
    code = "import sys, pi3; pi3.Pi3; print(sorted(name for name in sys.modules if name.startswith('wan')))"
    assert run(environment / "python", "-c", code).stdout == "['wan_core', 'wan_core.errors', 'wan_core.lazy']\n"
