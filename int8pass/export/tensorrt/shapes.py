"""Optimization profiles: for each input with dynamic dimensions its smallest, typical and largest shape."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from int8pass.errors import ConfigError

Shape = tuple[int, ...]
DYNAMIC = -1
# Smallest, typical and largest size of a dynamic dimension: the first of a tensor is taken for its batch.
BATCH, OTHER = (1, 8, 32), (1, 128, 512)


class ShapeRange(NamedTuple):
    """The shapes that an engine takes for one input; it is tuned for the typical one."""

    smallest: Shape
    typical: Shape
    largest: Shape


def shape_range(name: str, declared: Shape, given: Sequence[Sequence[int]] | None) -> ShapeRange | None:
    """The range of an input, or None for one without dynamic dimensions.

    declared: its shape in the file, -1 where dynamic. given: three shapes, or None for the defaults: 1 to 32, typically
    8, for the first dimension, and 1 to 512, typically 128, for others.

    Raises ConfigError for shapes that do not fit the declared one or each other.
    """
    if given is None:
        if DYNAMIC not in declared:
            return None
        sizes = [
            (BATCH if axis == 0 else OTHER) if size == DYNAMIC else (size,) * 3 for axis, size in enumerate(declared)
        ]
        return ShapeRange(*map(tuple, zip(*sizes, strict=True)))
    shapes = [tuple(shape) for shape in given]
    if len(shapes) != 3:
        raise ConfigError(f"shapes of {name!r}: three are needed (smallest, typical, largest), not {len(shapes)}")
    for shape in shapes:
        if len(shape) != len(declared):
            raise ConfigError(f"shapes of {name!r}: {shape} has {len(shape)} dimensions, the input {len(declared)}")
        for size, fixed in zip(shape, declared, strict=True):
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise ConfigError(f"shapes of {name!r}: {size!r} is not a size")
            if fixed not in (DYNAMIC, size):
                raise ConfigError(f"shapes of {name!r}: {shape} differs from {declared} in a dimension that is fixed")
    if any(not small <= typical <= large for small, typical, large in zip(*shapes, strict=True)):
        raise ConfigError(f"shapes of {name!r}: sizes must not fall from smallest to typical to largest: {shapes}")
    return ShapeRange(*shapes) if DYNAMIC in declared else None


def check_names(given: Mapping[str, object], inputs: Iterable[str]) -> None:
    """Raise ConfigError, naming the nearest input, for a name that is none of the network's."""
    known = list(inputs)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"there is no input {name!r}; did you mean {near!r}? The inputs are: {', '.join(known)}")


def parse_shapes(text: str) -> tuple[str, list[Shape]]:
    """NAME=1x8,8x128,32x512 of the command line as a name and three shapes. Raises ConfigError."""
    name, _, shapes = text.rpartition("=")
    try:
        parsed = [tuple(int(size) for size in shape.split("x")) for shape in shapes.split(",")]
    except ValueError:
        parsed = []
    if not name or len(parsed) != 3:
        raise ConfigError(f"{text!r}: write NAME=SMALLEST,TYPICAL,LARGEST, such as input_ids=1x1,8x128,32x512")
    return name, parsed
