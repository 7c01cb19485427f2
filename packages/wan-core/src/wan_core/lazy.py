"""Imports that wait until a name is asked for, so that a command pays only for what it uses."""

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def on_demand(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` (PEP 562) of the package called ``package``.

    Which name comes from which module is said once, where type checkers read it too::

        if TYPE_CHECKING:
            from package.module import Name
        else:
            __getattr__, __dir__ = on_demand(__name__)

    A name that a module of the package has too is imported at once instead: the package finds the module first.
    """

    @cache
    def homes() -> dict[str, tuple[str, str]]:
        source = Path(sys.modules[package].__file__ or "").read_text(encoding="utf-8")
        return exports_on_demand(ast.parse(source))

    def get(name: str) -> object:
        if name not in homes():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, original = homes()[name]
        value = getattr(import_module(module), original)
        setattr(sys.modules[package], name, value)  # found without us from now on
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes()})

    return get, names


def load(address: str) -> Any:
    """What an address ``module:name`` means. Imports the module."""
    module, name = address.split(":")
    return getattr(import_module(module), name)


def exports_on_demand(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """What the ``if TYPE_CHECKING:`` blocks of a module import: name to (module, its name there)."""
    return {
        alias.asname or alias.name: (statement.module, alias.name)
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names
    }
