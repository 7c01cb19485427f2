"""The one converter: tensors of a file under native names, and native tensors under the names of a format."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from wan_core.checkpoints.families import Expert, Family, get_family
from wan_core.checkpoints.families.relatives import notes_of
from wan_core.checkpoints.folds import unfolded
from wan_core.checkpoints.formats import CheckpointFormat, detect_format, get_format, rename
from wan_core.checkpoints.lora.names import is_lora, refuse_unmerged
from wan_core.checkpoints.members import FoundNetwork, chosen_member, experts_of, labels, members_of, plain_names
from wan_core.checkpoints.readers.quantized import dequantized
from wan_core.checkpoints.readers.sources import DerivedSource, Recipe, TensorInfo, TensorSource
from wan_core.checkpoints.readers.trainer_folders import LIST_OF_TENSORS
from wan_core.errors import CheckpointError


class NativeWeights(DerivedSource):
    """The tensors of one network under native names; ``format`` is the naming that the file has.

    ``notes`` are sentences about what was taken of a file that holds more.
    """

    def __init__(
        self, base: TensorSource, recipes: Mapping[str, Recipe], family: Family, format: str, notes: tuple[str, ...]
    ) -> None:
        super().__init__(base, recipes)
        self.family = family
        self.format = format
        self.notes = notes


def native_weights(
    source: TensorSource, family: Family | str, *, group: str | None = None, expert: Expert | None = None
) -> NativeWeights:
    """A view of ``source`` under the native names of ``family``, a record or the name of one.

    ``group`` names the network to take where a file holds several of one kind, for instance ``generator``; by default
    averaged weights (``generator_ema``) win, and networks that only help training (``critic``) lose. ``expert`` tells
    two experts in one file apart. Raises CheckpointError when that leaves several, when names collide, a fused tensor
    cannot be cut, or the file is a LoRA.
    """
    family = get_family(family)
    if isinstance(source, NativeWeights) and source.family.name == family.name and group is None:
        return source
    source = dequantized(source)
    plain, notes = _names_of_one(source, family, group, expert)
    chosen = detect_format(plain.keys(), family.formats)
    rules = dict(chosen.table(plain.keys()))
    recipes, used = _fused(source, plain, chosen)
    for name in sorted(plain, key=partial(_rank, chosen)) if chosen.duplicates else plain:
        if name in used:
            continue
        original = plain[name]
        made = _native(source, name, original, chosen, rules)
        taken = [target for target in made if target in recipes]
        if taken and taken[0] not in chosen.duplicates:
            raise _same_name(source, original, recipes[taken[0]].inputs[0], taken[0])
        if not taken:
            recipes.update(made)
    if family.begins_at_zero and not recipes.keys() & set(family.begins_at_zero):
        absent, effect = ", ".join(family.begins_at_zero), family.at_zero and f": {family.at_zero}"
        notes += (f"note: {source.path.name} has no {absent}, which begin at zero{effect}",)
    return NativeWeights(source, unfolded(recipes, family.folds), family, chosen.name, notes)


def in_format(native: TensorSource, family: Family | str, name: str) -> DerivedSource:
    """The reverse: a view of native tensors under the names of format ``name``.

    Raises CheckpointError for an unknown format or when two tensors would get one name.
    """
    chosen = get_format(get_family(family).formats, name)
    rules = {ours: theirs for theirs, ours in reversed(chosen.table(native.keys())) if ours is not None}
    recipes: dict[str, Recipe] = {}
    used: set[str] = set()
    if chosen.join is not None:
        for target, (inputs, make) in chosen.join(native.keys()).items():
            recipes[target] = _joined(native, inputs, make)
            used.update(inputs)
    for source in native:
        if source in used:
            continue
        target = rename(source, rules) or source
        if target in recipes:
            raise CheckpointError(f"{native.path}: two tensors would be {target} in format {name}")
        recipes[target] = Recipe((source,), native.info(source))
    return DerivedSource(native, recipes)


def _names_of_one(
    source: TensorSource, family: Family, group: str | None, expert: Expert | None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The names of the network that is meant, without prefix and wrappers, to the file's own; notes about others."""
    serving = {family.name} if family.base is None else {family.name, family.base.name}
    members = [member for member in members_of(source, family) if serving.intersection(member.families)]
    if members:
        chosen = chosen_member(source, members, group, expert)
        return dict(chosen.names), tuple(_notes(source, family, members, chosen))
    if family.owns:
        raise CheckpointError(f"{source.path} holds nothing of {family.title}: none of its {len(source)} tensors is")
    refuse_unmerged(source.path, source)
    if is_lora(source):
        raise CheckpointError(
            f"{source.path} is a LoRA ({', '.join(list(source)[:2])}), not a whole network; give it with --lora"
        )
    if group is not None:
        raise CheckpointError(f"{source.path} holds no group {group!r}; it holds nothing of {family.title}")
    return plain_names(source, source.keys()), ()


def _notes(
    source: TensorSource, family: Family, members: Sequence[FoundNetwork], chosen: FoundNetwork
) -> Iterator[str]:
    name = source.path.name
    yield from source.remarks
    if len(members) > 1 and not experts_of(members):
        names = labels(members)
        yield f"note: {name} holds {', '.join(names)}; {names[members.index(chosen)]} is taken"
    if len(members) == 1 and chosen.rank > 1:
        yield f"note: {name} holds {labels(members)[0]} alone, which by its name only helps in training"
    inside = {own for member in members for own in member.names.values()}
    rest = [own for own in source if own not in inside]
    averaged = _averaged(source, rest)
    if chosen.rank and averaged is not None:
        yield f"note: {name} also holds averaged weights ({averaged}, ...), which are not read as they are stored"
    if family.is_denoiser and is_lora(rest):
        yield f"note: {name} also holds a LoRA, which is left out; give the file with --lora for it"
    yield from notes_of(source.path) if family.is_denoiser else ()


def _averaged(source: TensorSource, rest: Sequence[str]) -> str | None:
    """A name of averaged weights that are no network of the file: in a list, or under names that say too little."""
    lists = [own for own, value in source.metadata.items() if value.startswith(LIST_OF_TENSORS)]
    names = [*(own for own in rest if source.info(own).numel > 1), *lists]
    return next((own for own in names if FoundNetwork(own, (), {}).rank == 0), None)


def _same_name(source: TensorSource, one: str, other: str, target: str) -> CheckpointError:
    return CheckpointError(f"{source.path}: {one} and {other} are both {target}; the file mixes two layouts")


def _fused(
    source: TensorSource, plain: Mapping[str, str], chosen: CheckpointFormat
) -> tuple[dict[str, Recipe], frozenset[str]]:
    """The native tensors that are made of several of the file, and which those are."""
    made = {} if chosen.fuse is None else chosen.fuse(plain.keys())
    recipes = {
        target: _joined(source, tuple(plain.get(name, name) for name in inputs), make)
        for target, (inputs, make) in made.items()
    }
    return recipes, frozenset(name for inputs, _ in made.values() for name in inputs)


def _native(
    source: TensorSource, name: str, original: str, chosen: CheckpointFormat, rules: Mapping[str, str | None]
) -> dict[str, Recipe]:
    """The native tensors that one tensor of the file becomes."""
    info = source.info(original)
    if chosen.split is not None:
        try:
            parts = chosen.split(name, info.like())
        except (ValueError, IndexError, RuntimeError) as error:
            raise CheckpointError(
                f"{source.path}: {original} has shape {list(info.shape)} and cannot be cut up"
            ) from error
        if parts is not None:
            return {
                target: Recipe(
                    (original,), TensorInfo(tuple(part.shape), part.dtype), partial(_part, chosen.split, name, target)
                )
                for target, part in parts.items()
            }
    target = rename(name, rules)
    return {} if target is None else {target: Recipe((original,), info)}


def _part(
    split: Callable[[str, Tensor], dict[str, Tensor] | None], name: str, target: str, tensors: Sequence[Tensor]
) -> Tensor:
    return (split(name, tensors[0]) or {})[target]


def _joined(source: TensorSource, inputs: tuple[str, ...], make: Callable[..., Tensor]) -> Recipe:
    missing = [name for name in inputs if name not in source]
    if missing:
        raise CheckpointError(f"{source.path} lacks {', '.join(missing)}")
    result = make(*(source.info(name).like() for name in inputs))
    return Recipe(inputs, TensorInfo(tuple(result.shape), result.dtype), lambda tensors: make(*tensors))


def _rank(chosen: CheckpointFormat, name: str) -> int:
    """The position of a tensor's rule in the table: of duplicates the first is taken."""
    for position, (pattern, _) in enumerate(chosen.renames):
        if name.startswith(pattern):
            return position
    return len(chosen.renames)
