"""The import arrows of the house, from the AST: ``check_arrows.py [ROOT]``; exit status 1 on any fault.

Besides the arrows: no modules that import each other, in tools neither and not even for types; no two public classes of
one name; no name in an ``__all__`` that only its own folder and tests use.

Imports inside functions count like the others, and so does ``importlib.import_module("literal")``; a package that
exports on demand brings in what is asked of it. Inside wan-core each layer imports only layers below it in LAYERS
(written bottom first); projects see the core's public subpackages.
"""

import argparse
import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wan_core.lazy import exports_on_demand

LAYERS = (
    {"errors", "lazy"},
    {"files"},
    {"drafts"},
    {"models", "media", "hub"},
    {"sampling", "checkpoints", "llm"},
    {"runtime"},
    {"tasks", "metrics"},
    {"presets", "kept_clips"},
    {"memory_plan"},
    {"denoising", "memory"},
    {"pipeline", "run_options"},
    {"loading"},  # above pipeline: load_pipeline returns a Pipeline
    {"training", "prompt_extend", "animate"},
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
# Narrower than the order: these layers may import only the parts listed.
ONLY = {
    "models": {"errors", "lazy"},
    "sampling": {"errors", "lazy", "media"},
    "hub": {"errors", "files", "drafts"},
    "tasks": {"errors", "files", "drafts", "models", "sampling", "media", "runtime"},
}
# Other people's packages that the models may use, by the longest prefix that fits; elsewhere any declared one may do.
MODEL_PACKAGES = {
    "models": {"torch", "einops"},
    "models.text": {"torch", "einops", "transformers", "tokenizers", "ftfy", "regex", "sentencepiece"},
    "models.image": {"torch", "einops", "transformers"},
    "models.audio": {"torch", "einops", "transformers"},
}
NEVER_IN_SRC = {"diffusers", "accelerate", "peft"}
# Importing these modules of the core must not bring any of the heavy packages in.
LIGHT = (
    "wan_core", "wan_core.errors", "wan_core.cli", "wan_core.__main__", "wan_core.cli.generate", "wan_core.cli.presets",
    "wan_core.presets.tiny", "wan_core.presets.wan21", "wan_core.presets.wan22", "poze.presets",
    "bindweave.presets", "selfforcing_unianimate.presets", "wan_mi2v.presets",
)  # fmt: skip
HEAVY = {"torch", "transformers", "diffusers", "av", "numpy", "PIL", "safetensors", "einops"}

PUBLIC = {
    "lazy", "files", "drafts", "hub", "models", "sampling", "tasks", "checkpoints", "runtime", "media", "presets",
    "pipeline", "loading", "training", "llm", "metrics", "animate", "cli",
}  # fmt: skip
# Arrows between packages of ours besides "project -> wan_core".
PROJECT_ARROWS = {("poze", "pi3")}
# Networks of projects that need torch and nothing of ours but the error family, which is plain Python.
PLAIN_NETWORKS = {
    "pi3": {
        "blocks", "camera", "conditions", "config", "conv_head", "dinov2", "edges", "geometry", "heads", "model",
        "pi3x", "prope", "rope2d",
    },
}  # fmt: skip

# (module, exported name that nothing of ours asks for there): why it is exported all the same.
EXPORTED: dict[tuple[str, str], str] = {
    ("wan_core.cli", "COMMANDS"): "the commands of wan as data, for who wraps or lists them",
    ("wan_core.cli", "ListCommand"): "a project's own command takes --images a.png b.png by it",
    ("wan_core.cli", "ListOption"): "a project's own command takes --images a.png b.png by it",
    ("wan_core.training", "Objective"): "what a project hands to plan_training for a loss of its own",
    ("wan_core.tasks", "FLF2VRequest"): "what Python users ask flf2v for; the command builds it from the task",
}


@dataclass(frozen=True)
class Import:
    """One import statement: ``module`` absolute, ``names`` taken from it, and whether it runs at import time."""

    module: str
    names: tuple[str, ...]
    line: int
    eager: bool


@dataclass(frozen=True)
class Module:
    """One file of ``packages/*/src``. ``name`` is dotted, without ``__init__``."""

    name: str
    path: str
    imports: tuple[Import, ...]
    exports: frozenset[str] | None  # the literal __all__, or None
    classes: tuple[str, ...] = ()  # public ones
    used: frozenset[tuple[str, str]] = frozenset()  # (module, name) that it imports or takes as an attribute
    on_demand: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # name to (module, its name there)

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    @property
    def inside(self) -> str:
        """The dotted name below the package, "" for the package itself."""
        return self.name.partition(".")[2]


def is_type_checking(node: ast.AST) -> bool:
    """Whether this is ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk_imports(node: ast.AST, package: str, eager: bool = True) -> Iterator[Import]:
    """Every import below the node. ``package`` resolves relative ones; functions make theirs lazy."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, (), child.lineno, eager) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - child.level + 1] if child.level else []
            module = ".".join([*base, *([child.module] if child.module else [])])
            yield Import(module, tuple(alias.name for alias in child.names), child.lineno, eager)
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith("import_module") and child.args:
            argument = child.args[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield Import(argument.value, (), child.lineno, False)
        lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_type_checking(child)
        yield from walk_imports(child, package, eager and not lazy)


def literal_all(tree: ast.Module) -> frozenset[str] | None:
    """The names of ``__all__ = [...]``, or None where the module has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]:
            return frozenset(ast.literal_eval(node.value))
    return None


def used_names(tree: ast.Module, imports: Iterable[Import]) -> frozenset[tuple[str, str]]:
    """The pairs (module, name) that a file takes by ``from module import name`` or as ``module.name``."""
    used = {(item.module, name) for item in imports for name in item.names}
    homes = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            homes.update({alias.asname or alias.name: prefix + alias.name for alias in node.names})
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (home := homes.get(ast.unparse(node.value))):
            used.add((home, node.attr))
    return frozenset(used)


def read_module(root: Path, path: Path, parts: Sequence[str]) -> Module:
    """The module of a file; ``parts`` are the names of its package."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    imports = tuple(walk_imports(tree, ".".join(parts)))
    is_on_demand = any(item.module == "wan_core.lazy" and "on_demand" in item.names for item in imports)
    return Module(
        name=".".join([*parts, *([] if path.stem == "__init__" else [path.stem])]),
        path=path.relative_to(root).as_posix(),
        imports=imports,
        exports=literal_all(tree),
        classes=tuple(node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"),
        used=used_names(tree, imports),
        on_demand=exports_on_demand(tree) if is_on_demand else {},
    )


def read_modules(root: Path) -> dict[str, Module]:
    """Every module of every package's src, by dotted name."""
    paths = sorted(root.glob("packages/*/src/**/*.py"))
    found = [read_module(root, path, path.relative_to(root).parts[3:-1]) for path in paths]
    return {module.name: module for module in found}


def read_others(root: Path) -> dict[str, Module]:
    """Every module of tools and of the package that tests make outside of this workspace, by dotted name."""
    paths = [*sorted(root.glob("tools/**/*.py")), *sorted(root.glob("tests/outside/*.py"))]
    found = [read_module(root, path, path.relative_to(root).parts[:-1]) for path in paths]
    return {module.name: module for module in found}


def core_targets(item: Import) -> set[str]:
    """The subpackages of wan_core that an import reaches, by module path or by name."""
    inside = item.module.partition(".")[2]
    return {inside.partition(".")[0]} if inside else {name for name in item.names if name in RANK}


def core_fault(module: Module, item: Import) -> str:
    """Why a module of wan-core may not import this part of wan-core, or ""."""
    own = module.inside.partition(".")[0]
    if not own:
        return ""
    if own not in RANK:
        return f"wan_core.{own} has no layer; give it one in tools/check_arrows.py"
    for target in core_targets(item) - {own}:
        if target not in RANK:
            return f"wan_core.{target} has no layer; give it one in tools/check_arrows.py"
        if own in ONLY and target not in ONLY[own]:
            return f"{own} may import only {', '.join(sorted(ONLY[own]))}, not {target}"
        if RANK[target] >= RANK[own]:
            return f"{own} may not import {target}: only layers below its own"
    return ""


def model_fault(module: Module, item: Import) -> str:
    """Why a model may not import this package of somebody else, or ""."""
    prefixes = [p for p in MODEL_PACKAGES if f"{module.inside}.".startswith(f"{p}.")]
    top = item.module.partition(".")[0]
    if not prefixes or top in sys.stdlib_module_names:
        return ""
    allowed = MODEL_PACKAGES[max(prefixes, key=len)]
    return "" if top in allowed else f"models here import only {', '.join(sorted(allowed))}, not {top}"


def project_fault(module: Module, item: Import, modules: dict[str, Module]) -> str:
    """Why a project may not import this from another package of ours, or ""."""
    own, other = module.package, item.module.partition(".")[0]
    arrow = (own, other)
    if other != "wan_core" and arrow not in PROJECT_ARROWS:
        return f"{own} may not import {other}"
    if module.inside.partition(".")[0] in PLAIN_NETWORKS.get(own, ()) and item.module != "wan_core":
        return f"{module.name} is a network and may import only the errors of wan_core"
    parts = item.module.split(".")
    if len(parts) > 2:
        return f"{item.module} is deeper than two; import from {'.'.join(parts[:2])}"
    if other == "wan_core" and (fault := subpackage_fault(parts[1:], item)):
        return fault
    exports = modules[item.module].exports if item.module in modules else None
    hidden = [
        n
        for n in item.names
        if f"{item.module}.{n}" not in modules and (n.startswith("_") or n not in (exports or {n}))
    ]
    return f"{item.module} does not export {hidden[0]} in __all__" if hidden else ""


def subpackage_fault(inside: list[str], item: Import) -> str:
    """Why this subpackage of the core is not for projects, or ""."""
    asked = set(inside) or {name for name in item.names if name in RANK}
    hidden = sorted(asked - PUBLIC)
    return f"wan_core.{hidden[0]} is not one of the subpackages open to projects" if hidden else ""


def heavy_reach(start: str, modules: dict[str, Module]) -> tuple[str, str] | None:
    """A heavy package that importing ``start`` brings in, and the module that does it; None when there is none."""
    seen, queue = set(), [start]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        package, _, asked = name.rpartition(".")
        if package in modules and asked in modules[package].on_demand:
            home = modules[package].on_demand[asked]
            queue += [home[0], ".".join(home)]
        if name not in modules:
            continue
        for item in modules[name].imports:
            top = item.module.partition(".")[0]
            if item.eager and top in HEAVY:
                return top, modules[name].path
            if item.eager and top in modules:
                parts = item.module.split(".")
                queue += [".".join(parts[: i + 1]) for i in range(len(parts))]
                queue += [f"{item.module}.{n}" for n in item.names]
    return None


def import_fault(module: Module, item: Import, modules: dict[str, Module]) -> str:
    """The first rule that this import breaks, or ""."""
    top = item.module.partition(".")[0]
    ours = {name for name in modules if "." not in name}
    if top in NEVER_IN_SRC:
        return f"{top} is for tests only"
    if top == module.package:
        return core_fault(module, item) if top == "wan_core" else ""
    if top in ours:
        return (
            f"wan_core may not import {top}" if module.package == "wan_core" else project_fault(module, item, modules)
        )
    return model_fault(module, item) if module.package == "wan_core" else ""


def reached(module: Module, modules: dict[str, Module]) -> set[str]:
    """The modules of ours that a module imports, lazily or for types alone too; a package only for its own names."""
    found = set()
    for item in module.imports:
        inside = {f"{item.module}.{name}" for name in item.names} & modules.keys()
        found |= inside
        if item.module in modules and (not item.names or len(inside) < len(item.names)):
            found.add(item.module)
    return found - {module.name}


def circles(modules: dict[str, Module]) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others; each sorted."""
    reach = {name: reached(module, modules) for name, module in modules.items()}
    grown = True
    while grown:  # to everything that is reached at all
        grown = False
        for name, targets in reach.items():
            more = targets.union(*(reach[target] for target in targets))
            grown |= len(more) > len(targets)
            reach[name] = more
    groups = {tuple(sorted({name, *(t for t in reach[name] if name in reach[t])})) for name in modules}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def shared_names(modules: dict[str, Module]) -> list[str]:
    """Public classes of one name, a line each."""
    homes: dict[str, list[str]] = {}
    for module in modules.values():
        for name in module.classes:
            homes.setdefault(name, []).append(module.path)
    return [f"two public classes are called {name}: {', '.join(paths)}" for name, paths in homes.items() if paths[1:]]


def documented_names(root: Path) -> set[tuple[str, str]]:
    """The pairs (module, name) that the Python blocks of the docs use and that entry points name."""
    found: set[tuple[str, str]] = set()
    for path in [*root.glob("docs/**/*.md"), *root.glob("*.md"), *root.glob("packages/*/README.md")]:
        for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            tree = ast.parse(block, str(path))
            found |= used_names(tree, walk_imports(tree, ""))
    for path in root.glob("packages/*/pyproject.toml"):
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
        for group in (project.get("scripts", {}), *project.get("entry-points", {}).values()):
            found |= {tuple(place.split(":", 1)) for place in group.values() if ":" in place}
    return found


def unused_exports(root: Path, modules: dict[str, Module], others: dict[str, Module]) -> list[str]:
    """Exported names that nothing outside their own folder uses (tests do not count), a line each."""
    users: dict[tuple[str, str], set[str]] = {name: {""} for name in documented_names(root)}
    for module in [*modules.values(), *others.values()]:
        for name in module.used:
            users.setdefault(name, set()).add(module.path)
    faults = []
    for module in modules.values():
        own = module.path.removesuffix("__init__.py")
        for name in sorted(module.exports or ()):
            is_used = any(not path.startswith(own) for path in users.get((module.name, name), ()))
            if not is_used and (module.name, name) not in EXPORTED:
                faults.append(f"{module.path}: nothing outside uses the exported {name}; take it out of __all__")
            if is_used and (module.name, name) in EXPORTED:
                faults.append(f"{module.path}: {name} is used; drop its line in EXPORTED")
    return faults


def check(root: Path) -> list[str]:
    """All wrong arrows under root, one line each."""
    modules = read_modules(root)
    faults = [
        f"{module.path}:{item.line}: {fault}"
        for module in modules.values()
        for item in module.imports
        if (fault := import_fault(module, item, modules))
    ]
    for name in LIGHT:
        if heavy := heavy_reach(name, modules):
            faults.append(f"importing {name} imports {heavy[0]} (in {heavy[1]}); import it where it is used")
    others = read_others(root)
    faults += [f"these modules import each other: {', '.join(group)}" for group in circles(modules | others)]
    return faults + shared_names(modules) + unused_exports(root, modules, others)


def main() -> int:
    """Print the wrong arrows and a count; 1 when there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, nargs="?", default=Path(__file__).resolve().parents[1])
    root = parser.parse_args().root
    faults = check(root)
    modules = read_modules(root)
    exported = sum(len(module.exports or ()) for module in modules.values())
    print("\n".join([*faults, f"{len(modules)} modules, {exported} exported names, {len(faults)} faults"]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
