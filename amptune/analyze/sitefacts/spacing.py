"""What a narrower format takes away on the way to a site: places of a grid, and integers that come back as such."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import fx

from amptune.analyze.sitefacts.dtypes import FollowedDtypes, root, walk
from amptune.core.autocast import HALF
from amptune.core.finding import Location

_JOINS = ("stack", "cat", "meshgrid", "broadcast_tensors")
_PACKS = ("stack", "cat")
_EVEN = 1e-3
"""By how much of a step the steps of a grid may differ, as those of numbers that FP32 rounded do."""
_FEWEST = 256
"""Numbers up to which the formats of 16 bits tell all places of a grid apart."""


class Grid(NamedTuple):
    """Evenly spaced numbers from ``first`` to ``last``, and where they are made in 16 bits, if they are."""

    first: float
    last: float
    size: int
    place: Location | None


class Returned(NamedTuple):
    """Integers of the batch that are cast to a floating format and back.

    Attributes:
        inputs: names of the tensors of the batch.
        dtype: the format, empty where it is that of a site.
        like: the site, or INPUT, whose dtype it is.
        place: where they are cast.
    """

    inputs: tuple[str, ...]
    dtype: str
    like: str
    place: Location


def grid_of(node: fx.Node, stored: Callable[[fx.Node], torch.Tensor | None]) -> Grid | None:
    """The largest grid that a tensor holds and nothing else; ``None`` for other tensors.

    Args:
        node: the tensor, or a view or cast of it.
        stored: the numbers of a node that is worked out from constants; ``None`` for others.
    """
    for step in walk(node):
        if step.meta.get("amptune_op") in _JOINS:
            parts = [grid_of(each, stored) for each in step.all_input_nodes]
            found = [each for each in parts if each is not None]
            return max(found, key=lambda each: each.size) if found and len(found) == len(parts) else None
    made = root(node)
    if made.meta.get("amptune_op") == "linspace":
        return _made_grid(made)
    return _grid_in(value) if (value := stored(made)) is not None else None


def _made_grid(node: fx.Node) -> Grid | None:
    call, value = node.meta.get("amptune_call"), node.meta.get("val")
    if call is None or not isinstance(value, torch.Tensor):
        return None
    first, last = call.attrs.get("start"), call.attrs.get("end")
    if not isinstance(first, int | float) or not isinstance(last, int | float):
        return None
    is_narrow = str(value.dtype).removeprefix("torch.") in HALF
    place = call.place.reader.location() if is_narrow and call.place.reader is not None else None
    return Grid(float(first), float(last), value.numel(), place)


def _grid_in(value: torch.Tensor) -> Grid | None:
    """The longest axis of a constant along which alone its numbers change, by the same step each time."""
    lengths = [length for length in value.shape if length > _FEWEST]
    if not lengths or not value.is_floating_point() or value.dtype.itemsize < 4:
        return None
    axis = list(value.shape).index(max(lengths))
    lines = value.detach().movedim(axis, 0).reshape(value.shape[axis], -1)
    line = lines[:, 0].double().cpu()
    steps = line.diff()
    step = float(steps.mean())
    if not step or float((steps - step).abs().max()) > _EVEN * abs(step) or not bool((lines == lines[:, :1]).all()):
        return None
    return Grid(float(line[0]), float(line[-1]), len(line), None)


def returned(node: fx.Node, dtypes: FollowedDtypes) -> Returned | None:
    """How integers of the batch come to a site that were rounded on the way; ``None`` for what is nothing like it."""
    made = root(node)
    if made.meta.get("amptune_op") == "one_hot" and isinstance(made.args[0], fx.Node):
        node = made.args[0]
    cast = next(iter(_from_floating(node)), None)
    return next(iter(_roundings(cast, dtypes)), None) if cast is not None else None


def _roundings(node: fx.Node, dtypes: FollowedDtypes) -> Iterator[Returned]:
    """The casts of integers of the batch to what may be 16 bits that lead to a tensor."""
    for step in walk(node):
        dtype, like = dtypes.named(step)
        inputs = tuple(dict.fromkeys(_integers_in(root(step)))) if dtype in HALF or like is not None else ()
        place = getattr(_cast_at(step).meta.get("amptune_call"), "place", None)
        if inputs and place is not None and place.reader is not None:
            yield Returned(inputs, "" if like else str(dtype), like or "", place.reader.location())
            return
    if step.meta.get("amptune_op") in _PACKS:
        for part in step.all_input_nodes:
            yield from _roundings(part, dtypes)


def _from_floating(node: fx.Node) -> Iterator[fx.Node]:
    """What is floating and becomes integers on the way to a node that is integers."""
    steps = list(walk(node))
    for after, before in itertools.pairwise(steps):
        kinds = [each.meta.get("val") for each in (after, before)]
        if all(isinstance(each, torch.Tensor) for each in kinds) and _is_back(*kinds):
            yield before


def _is_back(after: Any, before: Any) -> bool:
    whole = not after.is_floating_point() and after.dtype is not torch.bool and not after.is_complex()
    return bool(whole and before.is_floating_point())


def _cast_at(node: fx.Node) -> fx.Node:
    """The call that casts, of a node and those that it is a view of."""
    for step in walk(node):
        call = step.meta.get("amptune_call")
        if call is not None and (call.attrs.get("dtype") is not None or call.op in ("half", "bfloat16", "type_as")):
            return step
    return node


def _integers_in(node: fx.Node) -> Iterator[str]:
    """Names of the tensors of integers in the batch that a tensor holds, alone or beside others."""
    if node.meta.get("amptune_op") in _PACKS:
        for part in node.all_input_nodes:
            yield from _integers_in(root(part))
    value = node.meta.get("val")
    is_whole = isinstance(value, torch.Tensor) and not value.is_floating_point() and value.dtype is not torch.bool
    if node.op == "placeholder" and is_whole:
        yield str(node.target)
