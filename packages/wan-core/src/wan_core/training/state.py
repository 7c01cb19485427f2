"""Training state on disk: atomic checkpoint folders from which a run goes on bit for bit.

A folder ``step-00000120`` holds ``model.safetensors`` (the trained weights), ``training.safetensors`` (optimizer and
averaged weights) and ``state.json`` (step, settings, structure, sizes and SHA-256 of the files). Runs of several
processes write parts instead of the two (see `sharded`); either kind is read by any number of processes. Random numbers
need no state: the loop seeds them from (seed, step, rank) at every step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from wan_core.drafts import Draft, abandoned_drafts, remove_abandoned, remove_folder
from wan_core.errors import CheckpointError, ConfigError, MediaError
from wan_core.files import hash_file, write_error
from wan_core.runtime import is_sharded
from wan_core.training.average import AveragedWeights, trained_tensors
from wan_core.training.sharded import copy_whole, is_sharded_folder, read_parts, write_parts, zeros_of

_STATE = "state.json"
_MODEL = "model.safetensors"
_TRAINING = "training.safetensors"
_WEIGHTS = "model."
_INTEGERS, _DICTS = ("step", "average_updates"), ("settings", "sizes", "shapes")
_STATE_VALUES = {"optimizers": list, **dict.fromkeys(_INTEGERS, int), **dict.fromkeys(_DICTS, dict)}
BASE_WEIGHTS = "base_weights"
"""The setting that names the weights which a run starts from."""
_REMEDY = "remove it to go on from an earlier one"
_T = TypeVar("_T")


@dataclass(frozen=True)
class TrainingState:
    """What a run consists of: the model, its optimizers, perhaps averaged weights, and its settings (plain values)."""

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    average: AveragedWeights | None
    settings: Mapping[str, Any]


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into tensors ``index.name`` and a structure of plain values for JSON.

    A state inside a state, as bitsandbytes keeps its 8-bit one, has longer names: ``index.group.name``.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for index, entries in state["state"].items():
        _split(str(index), entries, tensors, values)
    return tensors, {"values": values, "groups": state["param_groups"]}


def _split(path: str, entries: Mapping[str, Any], tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    for name, entry in entries.items():
        if isinstance(entry, Tensor):
            tensors[f"{path}.{name}"] = entry
        elif isinstance(entry, Mapping):
            _split(f"{path}.{name}", entry, tensors, values)
        else:
            values.setdefault(path, {})[name] = entry


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: dict[str, Any]) -> None:
    """Put back what `pack_optimizer` took out. Raises CheckpointError when it belongs to other parameters."""
    named = {f"{path}.{name}": value for path, entries in plain["values"].items() for name, value in entries.items()}
    state: dict[int, dict[str, Any]] = {}
    for name, entry in (named | dict(tensors)).items():
        index, *groups, last = name.split(".")
        inner = state.setdefault(int(index), {})
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = entry
    try:
        optimizer.load_state_dict({"state": state, "param_groups": plain["groups"]})
    except ValueError as error:
        raise CheckpointError(f"the optimizer state belongs to other parameters: {error}") from error


class CheckpointFolder:
    """The checkpoints of one run in ``root``; the last ``keep`` complete ones stay.

    A checkpoint appears under its name only when it is whole, so a killed process leaves none that is half written; one
    that it had written and not yet named is taken up by the next run.
    """

    def __init__(self, root: str | Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ConfigError(f"at least one checkpoint must be kept, got {keep}")
        self.root = Path(root)
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, in order."""
        found = (re.fullmatch(r"step-([0-9]+)", path.name) for path in self.root.glob("step-*"))
        return sorted(int(match[1]) for match in found if match is not None)

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.root / f"step-{step:08d}"

    def save(self, state: TrainingState, step: int) -> Path:
        """Write a checkpoint and remove old ones.

        Raises MediaError when the disk is full or not writable; checkpoints that were there are untouched then.
        """
        draft = Draft(self.path(step), is_folder=True)
        together = is_sharded(state.model)
        try:
            temporary = first_alone(lambda: draft.__enter__().path, together)
            tensors, summary = _packed(state, step)
            if together:
                summary["sha256"] = write_parts(temporary, tensors)
            first_alone(lambda: self._finish(draft, tensors, summary, state.model), together)
        except (OSError, SafetensorError, MediaError) as error:
            last = f"the last good one is {self.path(self.steps()[-1])}" if self.steps() else "there is no earlier one"
            raise MediaError(f"cannot save a checkpoint: {_reason(self.root, error)}; {last}") from error
        finally:
            draft.discard()
        return self.path(step)

    def _finish(self, draft: Draft, tensors: Mapping[str, Tensor], summary: dict[str, Any], model: nn.Module) -> None:
        """Complete the folder, give it its name and remove old ones."""
        if not is_sharded(model):
            _write_files(draft.path, tensors, _unseen_dims(model))
            summary["sha256"] = {name: hash_file(draft.path / name) for name in (_MODEL, _TRAINING)}
        summary["sizes"] = {name: (draft.path / name).stat().st_size for name in summary["sha256"]}
        (draft.path / _STATE).write_text(json.dumps(summary, indent=1))
        draft.commit()
        for old in self.steps()[: -self.keep]:
            remove_folder(self.path(old))

    def restore(self, state: TrainingState, *, may_change: Iterable[str] = ()) -> int:
        """Load the newest checkpoint into ``state`` and return its step, or 0 when there is none.

        Raises CheckpointError when it is damaged or of another model, ConfigError naming the settings that differ;
        those in ``may_change`` may.
        """
        together = is_sharded(state.model)
        steps = first_alone(self._whole_steps, together)
        if not steps:
            return 0
        folder = self.path(steps[-1])
        saved = _read_state(folder)
        _compare_settings(saved["settings"], state.settings, set(may_change), folder)
        rank, world = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
        _check_files(folder, saved, rank, world)
        try:
            tensors = _read_tensors(folder, saved, state)
            _restore_model(state.model, _below(tensors, _WEIGHTS), folder)
            _restore_rest(state, tensors, saved)
        except (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{folder} is damaged: {reason:.200}; {_REMEDY}") from error
        return int(saved["step"])

    def _whole_steps(self) -> list[int]:
        """The steps of the checkpoints, with a newest one that was whole when its run was killed before naming it."""
        if self.root.is_dir():
            for draft, target in abandoned_drafts(self.root):
                if target.name.startswith("step-") and target > self.path(self.steps()[-1] if self.steps() else -1):
                    with suppress(CheckpointError):
                        _check_files(draft, _read_state(draft))
                        draft.rename(target)
            remove_abandoned(self.root)
        return self.steps()

    def settings(self) -> dict[str, Any] | None:
        """The settings of the run that the newest checkpoint is of, or None. Raises CheckpointError."""
        steps = self.steps()
        found: dict[str, Any] | None = _read_state(self.path(steps[-1]))["settings"] if steps else None
        return found

    def compare(self, settings: Mapping[str, Any], *, may_change: Iterable[str] = ()) -> int:
        """The step of the newest checkpoint, 0 when there is none; only its settings are read.

        Raises as `restore` does, but for weights.
        """
        steps = self.steps()
        if steps:
            folder = self.path(steps[-1])
            _compare_settings(_read_state(folder)["settings"], settings, set(may_change), folder)
        return steps[-1] if steps else 0


def _reason(folder: Path, error: Exception) -> str:
    """The sentence of what the disk refused; safetensors gives the number of the system's error in its text only."""
    if isinstance(error, MediaError):
        return str(error)
    found, reason = re.search(r"os error (\d+)", str(error)), getattr(error, "strerror", None) or str(error)
    return str(write_error(folder, OSError(int(found[1]) if found else getattr(error, "errno", None), reason)))


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def first_alone(action: Callable[[], _T], together: bool) -> _T:
    """Do something once, in the first process; its result, or an error of the disk there, is that of all."""
    if not together:
        return action()
    outcome: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            outcome[0] = action()
        except (OSError, SafetensorError, MediaError) as error:
            outcome[1] = OSError(str(error)) if isinstance(error, SafetensorError) else error
    distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: _T = outcome[0]
    return result


def _packed(state: TrainingState, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a run by name, and the rest as plain values."""
    tensors = {f"{_WEIGHTS}{name}": value.detach() for name, value in trained_tensors(state.model).items()}
    structures = []
    for number, optimizer in enumerate(state.optimizers):
        packed, plain = pack_optimizer(optimizer)
        tensors.update({f"optimizer.{number}.{name}": tensor for name, tensor in packed.items()})
        structures.append(plain)
    if state.average is not None:
        tensors.update({f"average.{name}": tensor for name, tensor in state.average.tensors.items()})
    summary = {
        "step": step,
        "settings": dict(state.settings),
        "optimizers": structures,
        "average_updates": 0 if state.average is None else state.average.updates,
        "sizes": {},
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }
    return tensors, summary


def _unseen_dims(model: nn.Module) -> dict[str, str]:
    """What a reader of the weights cannot tell by their shapes, as the metadata of their file."""
    config = getattr(getattr(model, "dit", model), "config", None)
    values = {name: getattr(config, name) for name in ("num_heads", "text_len", "eps") if hasattr(config, name)}
    return {"config": json.dumps(values)} if values else {}


def _write_files(folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Whole tensors in two files: the weights, which others may read too, with what is ``about`` them, and the rest."""
    weights = _below(tensors, _WEIGHTS)
    training = {name: tensor for name, tensor in tensors.items() if not name.startswith(_WEIGHTS)}
    for file, content, metadata in ((_MODEL, weights, about), (_TRAINING, training, {})):
        save_file(_apart(content), folder / file, {"format": "pt", **metadata})


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each with memory of its own: optimizers share tables, which safetensors refuses."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        is_shared = tensor.numel() > 0 and tensor.data_ptr() in seen
        seen.add(tensor.data_ptr())
        apart[name] = tensor.clone() if is_shared else tensor.contiguous()
    return apart


def _read_tensors(folder: Path, saved: Mapping[str, Any], state: TrainingState) -> dict[str, Tensor]:
    """All tensors of a checkpoint: whole, or divided as the model is."""
    if not is_sharded_folder(folder):
        weights = {f"{_WEIGHTS}{name}": tensor for name, tensor in load_file(folder / _MODEL).items()}
        return weights | load_file(folder / _TRAINING)
    tensors = {name: _room(name, shape, state) for name, shape in saved["shapes"].items()}
    read_parts(folder, tensors)
    return tensors


def _room(name: str, shape: Sequence[int], state: TrainingState) -> Tensor:
    """Memory for a saved tensor, divided as its counterpart of the run is."""
    kind, _, rest = name.partition(".")
    if kind == "optimizer":
        number, _, entry = rest.partition(".")
        number_of = int(number)
        if number_of < len(state.optimizers):
            return zeros_of(shape, _owner(state.optimizers[number_of], entry))
    counterparts = trained_tensors(state.model)
    return zeros_of(shape, counterparts[rest]) if rest in counterparts else torch.zeros(tuple(shape))


def _owner(optimizer: torch.optim.Optimizer, entry: str) -> Tensor:
    """The weight that an entry ``index.name`` of an optimizer's state belongs to."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    index = int(entry.partition(".")[0])
    if index >= len(weights):
        raise CheckpointError(f"the optimizer state belongs to other parameters: it has more than {len(weights)}")
    owner: Tensor = weights[index]
    return owner


def _fitted(tensor: Tensor, owner: Tensor) -> Tensor:
    """A saved entry of an optimizer, divided as the weight that it belongs to."""
    room = zeros_of(tensor.shape, owner)
    if type(room) is type(tensor):
        return tensor
    copy_whole(room, tensor)
    return room


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = json.loads((folder / _STATE).read_bytes())
        odd = [name for name, kind in _STATE_VALUES.items() if not isinstance(saved[name], kind)]
        odd += ["sha256"] if saved.get("sha256", {}).keys() - saved["sizes"].keys() else []
        wrong = [name for name, size in saved["sizes"].items() if (folder / Path(name).name).stat().st_size != size]
        flat_settings(saved["settings"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{_STATE} is no state of a run ({type(error).__name__}: {error})"
        raise CheckpointError(f"{folder} is damaged: {reason:.200}; {_REMEDY}") from error
    if odd or wrong:
        what = f"{odd[0]} in {_STATE} is of another kind" if odd else f"{wrong[0]} has another size"
        raise CheckpointError(f"{folder} is damaged: {what}; {_REMEDY}")
    return saved


def _check_files(folder: Path, saved: Mapping[str, Any], rank: int = 0, world: int = 1) -> None:
    """Check a process's share of the files of a checkpoint against their SHA-256; older ones have none."""
    for name, digest in sorted(saved.get("sha256", {}).items())[rank::world]:
        if hash_file(folder / Path(name).name) != digest:
            raise CheckpointError(f"{folder} is damaged: {name} has other content; {_REMEDY}")


def _compare_settings(saved: Mapping[str, Any], now: Mapping[str, Any], may_change: set[str], folder: Path) -> None:
    saved, now = flat_settings(saved), flat_settings(json.loads(json.dumps(dict(now))))  # tuples as the file's lists
    if f"recipe.{BASE_WEIGHTS}" not in saved:  # a run from before it was noted
        may_change = {*may_change, f"recipe.{BASE_WEIGHTS}"}
    names = sorted((set(saved) | set(now)) - may_change)
    changed = [
        f"{name} was {saved.get(name)!r}, is {now.get(name)!r}" for name in names if saved.get(name) != now.get(name)
    ]
    if changed:
        raise ConfigError(
            f"cannot go on from {folder} with other settings: {'; '.join(changed[:5])}; set them back, or name another "
            "output folder"
        )


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by dotted names, so that a message shows the one that differs."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": each for inner, each in flat_settings(value).items()}
        else:
            flat[name] = value
    return flat


def _restore_model(model: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    present = trained_tensors(model)
    differing = sorted(set(present) ^ set(weights)) or sorted(
        n for n in present if present[n].shape != weights[n].shape
    )
    if differing:
        raise CheckpointError(
            f"{folder} belongs to another model: {len(differing)} weights differ, first {differing[0]}"
        )
    with torch.no_grad():
        for name, parameter in present.items():
            copy_whole(parameter, weights[name])


def _restore_rest(state: TrainingState, tensors: Mapping[str, Tensor], saved: Mapping[str, Any]) -> None:
    """The optimizers and the averaged weights."""
    for number, optimizer in enumerate(state.optimizers):
        entries = {
            name: _fitted(tensor, _owner(optimizer, name))
            for name, tensor in _below(tensors, f"optimizer.{number}.").items()
        }
        plain = saved["optimizers"][number]
        _compare_groups(optimizer.param_groups, plain["groups"])
        unpack_optimizer(optimizer, entries, plain)
    if state.average is not None:
        state.average.updates = saved["average_updates"]
        for name, tensor in _below(tensors, "average.").items():
            copy_whole(state.average.tensors[name], tensor)


def _compare_groups(present: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> None:
    """The settings of an optimizer are the run's own, but for the rate of the moment. Raises ValueError."""
    for own, other in zip(present, saved, strict=True):
        for name in (own.keys() & other.keys()) - {"params", "lr"}:
            if json.loads(json.dumps(own[name])) != other[name]:
                raise ValueError(f"the optimizer's {name} was {other[name]!r:.40}, is {own[name]!r:.40}")
