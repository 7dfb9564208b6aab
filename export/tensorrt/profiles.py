"""Optimisation profiles: which shapes an engine takes, and which one it is tuned for.

They follow from the manifest, because a picture may come in any size that its `input` can give. For sides of at most
800 and 1333 in multiples of 32, and batches of up to 8, there are two, lying and standing pictures:

                 images                              sizes
    smallest     1 x 32 x 32 x 3       the same      1 x 2
    best         8 x 800 x 1088 x 3    8 x 1088 x 800 x 3
    largest      8 x 800 x 1344 x 3    8 x 1344 x 800 x 3

One profile for both would have to hold 1344 x 1344, which no picture becomes, and memory is set aside for the largest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from export.errors import ExportError
from server.manifest import Profile
from server.preprocess import AnyInput, FixedInput, ShortestEdgeInput

Size = tuple[int, int]

PHOTOGRAPH = (480, 640)  # what an engine is tuned for unless told: most pictures of COCO have this ratio


def profiles_for(
    spec: AnyInput, inputs: Iterable[str], max_batch: int, best: tuple[int | None, Size] | None = None
) -> list[Profile]:
    """
    Args:
        inputs: names of the graph's inputs, `images` and perhaps `sizes`.
        best: (batch, (height, width)) to tune for, as from `read_best`; without a batch, `max_batch`.

    Raises:
        ExportError: `best` is no shape that the manifest's input can give.
    """
    batch = (best[0] if best else None) or max_batch
    if batch > max_batch:
        raise ExportError(f"--best asks for a batch of {batch}; the engine takes at most {max_batch}")
    ranges = ranges_of(spec)
    tuned = [_size_for(spec, smallest, largest) for smallest, largest in ranges]
    if best:
        holding = [_inside(best[1], *limits) and _is_multiple(spec, best[1]) for limits in ranges]
        if not any(holding):
            written = " or ".join(f"{low[0]}x{low[1]} to {high[0]}x{high[1]}" for low, high in ranges)
            step = "" if isinstance(spec, FixedInput) else f" in multiples of {spec.multiple}"
            raise ExportError(f"--best {best[1][0]}x{best[1][1]} cannot be: this model takes {written}{step}")
        tuned = [best[1] if holds else size for holds, size in zip(holding, tuned, strict=True)]
    names = list(inputs)
    return [
        Profile(
            smallest=_shapes(names, 1, smallest),
            best=_shapes(names, batch, size),
            largest=_shapes(names, max_batch, largest),
        )
        for (smallest, largest), size in zip(ranges, tuned, strict=True)
    ]


def ranges_of(spec: AnyInput) -> list[tuple[Size, Size]]:
    """(smallest, largest) sizes, height and width each, which together hold everything that `spec.frame` can give."""
    if isinstance(spec, FixedInput):
        return [(spec.size, spec.size)]
    smallest = (spec.multiple, spec.multiple)
    if isinstance(spec, ShortestEdgeInput):
        short = -(-spec.short_side // spec.multiple) * spec.multiple
        long = max(spec.max_size)
        return [(smallest, size) for size in dict.fromkeys([(short, long), (long, short)])]
    return [(smallest, spec.max_size)]


def read_best(text: str) -> tuple[int | None, Size]:
    """`800x1088` or `4x800x1088`: height and width, with the batch before them.

    Raises:
        ExportError: it is neither.
    """
    found = re.fullmatch(r"(?:(\d{1,4})x)?(\d{1,5})x(\d{1,5})", text)
    if not found or not all(int(number) for number in found.groups() if number):
        raise ExportError(f"--best {text} should be height x width or batch x height x width, as in 4x800x1088")
    return int(found[1]) if found[1] else None, (int(found[2]), int(found[3]))


def _size_for(spec: AnyInput, smallest: Size, largest: Size) -> Size:
    """Where an ordinary photograph comes to lie, standing where the range is."""
    lying = largest[0] <= largest[1]
    size = spec.frame(PHOTOGRAPH if lying else PHOTOGRAPH[::-1]).input_size
    return (min(max(size[0], smallest[0]), largest[0]), min(max(size[1], smallest[1]), largest[1]))


def _inside(size: Size, smallest: Size, largest: Size) -> bool:
    return all(low <= side <= high for low, side, high in zip(smallest, size, largest, strict=True))


def _is_multiple(spec: AnyInput, size: Size) -> bool:
    return isinstance(spec, FixedInput) or not any(side % spec.multiple for side in size)


def _shapes(names: list[str], batch: int, size: Size) -> dict[str, list[int]]:
    shapes = {"images": [batch, *size, 3], "sizes": [batch, 2]}
    return {name: shapes[name] for name in names}
