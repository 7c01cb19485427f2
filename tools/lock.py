"""Lock the workspace without addresses: ``lock.py [UV-LOCK-OPTION ...]`` or ``lock.py --check``.

uv writes into ``uv.lock`` which index every file came from. The committed lock keeps names, versions and hashes only:
``source = { registry = "index" }`` and ``{ path = "<file name>", hash = "..." }``. The root pyproject declares one
explicit, empty index of its own; that makes uv look again for a registry it does not know, keep every pinned version,
and fill the addresses of the user's own index into the working file. ``--check`` therefore compares modulo addresses.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
REGISTRY = re.compile(r'registry = "[^"]*"')
DISTRIBUTION = re.compile(r'\{ (?:url|path) = "(?:[^"]*/)?([^"/]+)"(, hash = "[^"]*")?[^}]*\}')


class LockError(Exception):
    """The lock cannot be used as it is; the message is the one line to print."""


def strip_addresses(text: str) -> str:
    """The same lock with file names instead of addresses; sizes and upload times go too. Idempotent.

    Raises LockError when an address is left, as with git or direct URL sources.
    """
    text = REGISTRY.sub('registry = "index"', text)
    text = DISTRIBUTION.sub(lambda m: f'{{ path = "{unquote(m[1])}"{m[2] or ""} }}', text)
    for number, line in enumerate(text.splitlines(), 1):
        if "://" in line:
            raise LockError(f"uv.lock line {number} keeps an address after stripping: {line.strip()}")
    return text


def file_hashes(lock: dict[str, Any]) -> dict[str, str]:
    """File name to hash of every wheel and source archive, in stripped or filled-in form."""
    files = {}
    for package in lock.get("package", []):
        sdist = [package["sdist"]] if "sdist" in package else []
        for file in [*sdist, *package.get("wheels", [])]:
            name = unquote((file.get("path") or file["url"]).rpartition("/")[2])
            files[name] = file.get("hash", "")
    return files


def pins(lock: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Every pinned (name, version) with the requirements that members of the workspace declare (None for others)."""
    return {(p["name"], p.get("version", "")): p.get("metadata") for p in lock.get("package", [])}


def compare(committed: str, filled: str) -> None:
    """Check a committed lock against what uv makes of it.

    New files of a pinned version are welcome (projects add wheels late), as are files that an index lacks.
    Raises LockError for an address, for pins that differ, and for a file whose hash differs.
    """
    if "://" in committed:
        line = next(n for n, text in enumerate(committed.splitlines(), 1) if "://" in text)
        raise LockError(f"the committed uv.lock has an address in line {line}; run tools/lock.py and commit")
    ours, theirs = tomllib.loads(committed), tomllib.loads(filled)
    old, new = pins(ours), pins(theirs)
    changed = sorted(
        {
            name
            for name, version in old.keys() | new.keys()
            if old.get((name, version), 0) != new.get((name, version), 0)
        }
    )
    if changed:
        names = ", ".join(changed[:5])
        raise LockError(
            f"the committed uv.lock does not cover the pyproject files ({names}); run tools/lock.py and commit"
        )
    hashes, filled_hashes = file_hashes(ours), file_hashes(theirs)
    differing = sorted(name for name in hashes.keys() & filled_hashes.keys() if hashes[name] != filled_hashes[name])
    if differing:
        raise LockError(f"your index gives other hashes than the committed uv.lock for {', '.join(differing[:5])}")


def run(command: list[str], directory: Path) -> str:
    """Standard output of a command. Raises LockError with its last line when it fails."""
    # A surrounding `uv run` names its own environment; locking a copy must not touch or mention it.
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "UV_FROZEN", "UV_LOCKED")}
    result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        reason = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()
        raise LockError(f"`{' '.join(command)}` failed: {' '.join(line.strip() for line in reason[-3:])}")
    return result.stdout


def check() -> None:
    """Compare the lock of HEAD with what uv makes of the working lock in a copy; the working tree stays as it is."""
    committed = run(["git", "show", "HEAD:uv.lock"], ROOT)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for source in [ROOT / "uv.lock", ROOT / "pyproject.toml", *ROOT.glob("packages/*/pyproject.toml")]:
            target = copy / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        run(["uv", "lock"], copy)
        compare(committed, (copy / "uv.lock").read_text(encoding="utf-8"))


def lock(options: list[str]) -> None:
    """Run ``uv lock`` with these options here and strip the addresses it wrote."""
    run(["uv", "lock", *options], ROOT)
    path = ROOT / "uv.lock"
    stripped = strip_addresses(path.read_text(encoding="utf-8"))
    # By hand, not through wan_core.drafts: this runs before the workspace is installed.
    temporary = path.with_suffix(".lock.new")
    temporary.write_text(stripped, encoding="utf-8", newline="\n")
    temporary.replace(path)


def main(arguments: list[str]) -> int:
    """Exit status 0, or 1 with one line on standard error."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    try:
        if arguments == ["--check"]:
            check()
        else:
            lock(arguments)
    except LockError as error:
        print(f"lock: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
