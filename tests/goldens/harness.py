"""Golden cases: read a file, run the family's handler, compare.

A case is one ``.safetensors`` file: ``weights.*``, ``in.*``, ``out.*`` and sometimes ``mid.*`` tensors, and metadata
that names its ``family`` with JSON ``config`` and ``call``. A handler maps it onto public code and returns what that
code computed under the golden's own tensor names. Every ``out.*`` must come back; ``mid.*`` is compared where it does.
"""

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from wan_core.runtime import prepare_model

DEFAULT_TOLERANCE = 1e-4
_PREPARED = ContextVar("prepared", default=False)


@dataclass(frozen=True)
class GoldenCase:
    """One golden file in memory. ``config`` and ``call`` are parsed; other metadata stays strings."""

    name: str
    family: str
    config: dict[str, Any]
    call: Any
    metadata: Mapping[str, str]
    tensors: Mapping[str, Tensor]

    def named(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with ``prefix``, with the prefix cut off."""
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.named("weights.")

    @property
    def inputs(self) -> dict[str, Tensor]:
        return self.named("in.")

    @property
    def records(self) -> dict[str, Any]:
        """Golden values that are no tensors: JSON in the metadata, by name."""
        return dict(json.loads(self.metadata.get("outputs", "{}")))

    @property
    def expected(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.tensors.items() if k.startswith(("out.", "mid."))}


@dataclass(frozen=True)
class Computed:
    """What a handler returns when plain tensors are not enough.

    ``tolerances`` replaces the default bound for a name, ``mismatches`` allows a fraction of unequal elements in an
    exact comparison, ``skipped`` leaves a name out. Each entry is ``name: (value, reason)`` or ``name: reason``.
    ``records`` holds what is compared with the JSON outputs of the metadata.
    """

    tensors: Mapping[str, Tensor]
    tolerances: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    mismatches: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    records: Mapping[str, Any] = field(default_factory=dict)


NetworkT = TypeVar("NetworkT", bound=nn.Module)
Handler = Callable[[GoldenCase], Computed | Mapping[str, Tensor]]
_HANDLERS: dict[str, Handler] = {}


def handles(*families: str) -> Callable[[Handler], Handler]:
    """Register the decorated function for these families; a second handler for one is an error."""

    def register(handler: Handler) -> Handler:
        for family in families:
            if family in _HANDLERS:
                raise ValueError(f"family {family!r} already has a handler")
            _HANDLERS[family] = handler
        return handler

    return register


def load_handlers() -> Mapping[str, Handler]:
    """Import every handler module once and return the registry by family."""
    package = importlib.import_module("tests.goldens.handlers")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return _HANDLERS


def read_case(path: Path) -> GoldenCase:
    """Read a golden file whole."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    return GoldenCase(
        name=path.stem,
        family=metadata["family"],
        config=json.loads(metadata.get("config", "{}")),
        call=json.loads(metadata.get("call", "{}")),
        metadata=metadata,
        tensors=tensors,
    )


def read_family(path: Path) -> str:
    """The family of a golden file, without reading its tensors."""
    with safe_open(path, framework="pt") as file:
        return str((file.metadata() or {})["family"])


def available_cases() -> list[Path]:
    """The committed golden files, and the shared ones of other names when the shared folder is beside the checkout."""
    root = Path(__file__).resolve().parents[2]
    committed = (root / "tests/goldens/cases").glob("*.safetensors")
    shared = (root.parent / "shared/goldens").glob("*.safetensors")
    return list({path.stem: path for path in [*sorted(shared), *sorted(committed)]}.values())


@dataclass(frozen=True)
class Comparison:
    """One tensor against its golden: the largest difference, and that over max(1, max|golden|)."""

    name: str
    passed: bool
    error: float
    relative: float
    detail: str = ""


@dataclass(frozen=True)
class Outcome:
    """The verdict on one case."""

    case: str
    status: str  # PASS, FAIL or UNSUPPORTED
    comparisons: tuple[Comparison, ...] = ()
    detail: str = ""

    def line(self) -> str:
        passed = sum(c.passed for c in self.comparisons)
        error = max((c.error for c in self.comparisons), default=0.0)
        relative = max((c.relative for c in self.comparisons), default=0.0)
        text = f"{self.status} {self.case} {passed}/{len(self.comparisons)} {error:.2e} {relative:.2e}"
        failures = [f"{c.name}: {c.detail}" for c in self.comparisons if not c.passed][:5]
        notes = [self.detail] if self.detail else []
        return "\n    ".join([text, *notes, *failures])


def compare(name: str, actual: Tensor, golden: Tensor, tolerance: float, mismatch: float = 0.0) -> Comparison:
    """Compare one tensor by the rules of the golden set: shape, exact integers, NaN where NaN, bounded floats."""
    if actual.shape != golden.shape:
        detail = f"shape {tuple(actual.shape)}, golden {tuple(golden.shape)}"
        return Comparison(name, False, float("inf"), float("inf"), detail)
    if not golden.is_floating_point():
        unequal = (actual.to(torch.int64) != golden.to(torch.int64)).double().mean().item() if golden.numel() else 0.0
        same_kind = not actual.is_floating_point()
        detail = (
            f"{unequal:.4%} of the elements differ" if same_kind else f"dtype {actual.dtype}, golden {golden.dtype}"
        )
        return Comparison(name, same_kind and unequal <= mismatch, unequal, unequal, detail)
    actual, golden = actual.double(), golden.double()
    finite = golden.isfinite()
    if not torch.equal(
        torch.where(finite, 0.0, actual).nan_to_num(7.0), torch.where(finite, 0.0, golden).nan_to_num(7.0)
    ):
        return Comparison(
            name,
            False,
            float("inf"),
            float("inf"),
            "NaN or infinity where the golden has none, or not where it has",
        )
    if not bool(actual[finite].isfinite().all()):
        return Comparison(name, False, float("inf"), float("inf"), "not finite")
    error = (actual - golden)[finite].abs().max().item() if finite.any() else 0.0
    scale = max(1.0, golden[finite].abs().max().item()) if finite.any() else 1.0
    detail = f"max abs difference {error:.3e} exceeds {tolerance * scale:.3e}"
    return Comparison(name, error <= tolerance * scale, error, error / scale, detail)


def compare_record(name: str, actual: Any, golden: Any) -> Comparison:
    """Compare one JSON value: equal or not; for lists the share of differing items."""
    if isinstance(actual, list) and isinstance(golden, list) and len(actual) == len(golden):
        unequal = [index for index, pair in enumerate(zip(actual, golden, strict=True)) if pair[0] != pair[1]]
        share = len(unequal) / max(1, len(golden))
        detail = f"item {unequal[0]} is {actual[unequal[0]]!r}, golden {golden[unequal[0]]!r}" if unequal else ""
        return Comparison(name, not unequal, share, share, detail)
    same = actual == golden
    return Comparison(name, same, float(not same), float(not same), "" if same else f"{actual!r}, golden {golden!r}")


def finished(network: NetworkT, *, is_trained: bool = False) -> NetworkT:
    """A network that a handler built; prepared for inference when the check asks for that, and it is not trained."""
    prepare_model(network, inference=_PREPARED.get() and not is_trained)
    return network.eval()


def check_case(case: GoldenCase) -> Outcome:
    """Run the case's handler and compare everything it must and can give."""
    handler = load_handlers().get(case.family)
    if handler is None:
        return Outcome(case.name, "UNSUPPORTED", detail=f"no handler for family {case.family!r}")
    with torch.no_grad():
        result = handler(case)
    computed = result if isinstance(result, Computed) else Computed(result)
    comparisons = []
    for name, golden in case.expected.items():
        if name in computed.skipped:
            continue
        if name not in computed.tensors:
            if name.startswith("out."):
                comparisons.append(Comparison(name, False, float("inf"), float("inf"), "not computed"))
            continue
        tolerance = computed.tolerances.get(name, (DEFAULT_TOLERANCE, ""))[0]
        mismatch = computed.mismatches.get(name, (0.0, ""))[0]
        comparisons.append(compare(name, computed.tensors[name], golden, tolerance, mismatch))
    for name, record in case.records.items():
        comparisons.append(compare_record(name, computed.records.get(name), record))
    # Values on the way (``mid.``) are compared where both sides have them; no case must record all that a handler can.
    returned = {name for name in computed.tensors if not name.startswith("mid.")}
    unknown = sorted({*returned, *computed.records} - {*case.expected, *case.records})
    detail = f"handler returned names that the golden lacks: {unknown[:5]}" if unknown else ""
    passed = bool(comparisons) and not unknown and all(c.passed for c in comparisons)
    return Outcome(case.name, "PASS" if passed else "FAIL", tuple(comparisons), detail)


def check_file(path: Path, *, prepared: bool = False) -> Outcome:
    """Check one golden file, with ``prepared`` on networks as a pipeline has them; an exception is a FAIL."""
    token = _PREPARED.set(prepared)
    try:
        return check_case(read_case(path))
    except Exception as error:
        return Outcome(path.stem, "FAIL", detail=f"{type(error).__name__}: {error}")
    finally:
        _PREPARED.reset(token)
