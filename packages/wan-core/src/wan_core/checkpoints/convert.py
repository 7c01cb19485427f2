"""The one converter: tensors of a file under native names, and native tensors under the names of a format."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import methodcaller

from torch import Tensor

from wan_core.checkpoints.families import Family, families, get_family
from wan_core.checkpoints.formats import CheckpointFormat, detect_format, get_format, rename
from wan_core.checkpoints.prefixes import unwrapped
from wan_core.checkpoints.readers.quantized import dequantized
from wan_core.checkpoints.readers.sources import DerivedSource, Recipe, TensorInfo, TensorSource
from wan_core.errors import CheckpointError


class NativeWeights(DerivedSource):
    """The tensors of one network under native names; ``format`` is the naming that the file has."""

    def __init__(self, base: TensorSource, recipes: Mapping[str, Recipe], family: Family, format: str) -> None:
        super().__init__(base, recipes)
        self.family = family
        self.format = format


def native_weights(source: TensorSource, family: Family | str, *, group: str | None = None) -> NativeWeights:
    """A view of ``source`` under the native names of ``family``, a record or the name of one.

    ``group`` names the nested dict to take where a file holds several models, for instance ``generator``; by default
    averaged weights (``generator_ema``) win. Raises CheckpointError when names collide or a fused tensor cannot be cut.
    """
    family = get_family(family)
    if isinstance(source, NativeWeights) and source.family.name == family.name and group is None:
        return source
    source = dequantized(source)
    plain = _plain_names(source, family, group)
    if group is not None and not plain:
        raise CheckpointError(f"{source.path} holds no group {group!r}")
    chosen = detect_format(plain.keys(), family.formats)
    rules = dict(chosen.table(plain.keys()))
    recipes: dict[str, Recipe] = {}
    for name in sorted(plain, key=partial(_rank, chosen)) if chosen.duplicates else plain:
        original = plain[name]
        made = _native(source, name, original, chosen, rules)
        taken = [target for target in made if target in recipes]
        if taken and taken[0] not in chosen.duplicates:
            raise _same_name(source, original, recipes[taken[0]].inputs[0], taken[0])
        if not taken:
            recipes.update(made)
    return NativeWeights(source, recipes, family, chosen.name)


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


def _plain_names(source: TensorSource, family: Family, group: str | None) -> dict[str, str]:
    """Names without nesting, prefixes, wrappers and other parts of a whole checkpoint, to the file's own."""
    formats = family.formats
    others = tuple(
        prefix
        for other in families()
        for prefix in other.single_prefixes
        if other.name != family.name and prefix not in family.single_prefixes
    )
    plain = _renamed(source, {name: name for name in source if not name.startswith(others)}, unwrapped)
    if group is None:
        nests = [nest for candidate in formats for nest in candidate.unwrap]
        plain = next((inside for nest in nests if (inside := _inside(nest, plain))), plain)
    else:
        plain = _inside(f"{group}.", plain)
    for prefix in dict.fromkeys(prefix for candidate in formats for prefix in candidate.strip_prefixes):
        plain = _renamed(source, plain, methodcaller("removeprefix", prefix))
    return plain


def _inside(nest: str, names: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(nest): own for name, own in names.items() if name.startswith(nest)}


def _renamed(source: TensorSource, names: Mapping[str, str], change: Callable[[str], str]) -> dict[str, str]:
    changed: dict[str, str] = {}
    for name, own in names.items():
        target = change(name)
        if target in changed:
            raise _same_name(source, own, changed[target], target)
        changed[target] = own
    return changed


def _same_name(source: TensorSource, one: str, other: str, target: str) -> CheckpointError:
    return CheckpointError(f"{source.path}: {one} and {other} are both {target}; the file mixes two layouts")


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


def _joined(native: TensorSource, inputs: tuple[str, ...], make: Callable[..., Tensor]) -> Recipe:
    missing = [name for name in inputs if name not in native]
    if missing:
        raise CheckpointError(f"{native.path} lacks {', '.join(missing)}")
    result = make(*(native.info(name).like() for name in inputs))
    return Recipe(inputs, TensorInfo(tuple(result.shape), result.dtype), lambda tensors: make(*tensors))


def _rank(chosen: CheckpointFormat, name: str) -> int:
    """The position of a tensor's rule in the table: of duplicates the first is taken."""
    for position, (pattern, _) in enumerate(chosen.renames):
        if name.startswith(pattern):
            return position
    return len(chosen.renames)
