"""Tensors that never fall along an axis: sorted numbers, sums of what is not negative, samples that jitter in bins."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from amptune.core.arguments import is_scaled
from amptune.core.bounds.intervals import Range
from amptune.core.graph import Site
from amptune.core.operands import input_of

if TYPE_CHECKING:
    from amptune.core.bounds.ranges import Ranges

RISING = frozenset({"sigmoid", "erf", "tanh", "atan", "exp", "exp2", "expm1", "softplus", "logsigmoid", "relu", "elu"})
"""Functions that never fall."""
_DEPTH = 8
_CUT = re.compile(
    r"slice\((?P<axis>-?\d+), (?P<start>\d+), (?P<stop>-?\d+)\)\{\}"
    r"|slice\(\(?(?P<before>(?:Ellipsis, |slice\(None, None, None\), )*)"
    r"slice\((?P<first>\w+), (?P<last>[-\w]+), None\)\)?,\)\{\}"
)
"""One part along one axis, as torch.export and a recorded forward write it."""
_LATER = (("1", "None"), ("1", "9223372036854775807"))
_EARLIER = (("None", "-1"), ("0", "-1"))
"""All along an axis but the first element, and but the last one."""
_PAIRS = frozenset({"sort", "cummax"})
_VALUES = re.compile(r"\s*(?:getitem|slice)\(0,\)\{\}$")
"""What picks the values of a pair of values and places."""
_SLICE = re.compile(
    r"(?:(?:slice|narrow)\(-?\d+, -?\d+, -?\d+(?:, 1)?\)"
    r"|slice\((?:\(Ellipsis, )?slice\([-\w]+, [-\w]+, (?:None|1)\)(?:,\))?,?\)"
    r"|expand\([^()]*(?:\([^()]*\))?[^()]*\))\{\}\s*"
)
"""Views that leave numbers in their order along an axis and that axis where it is."""


def steps_upwards(ranges: Ranges, site: Site) -> Range | None:
    """That ``x[..., 1:] - x[..., :-1]`` and ``x.diff()`` of what never falls along the axis are not below zero."""
    made, views = _read(ranges, site, 0)
    if made is None:
        return None
    if site.op == "sub":
        earlier, others = _read(ranges, site, 1)
        axis = _step(views, others) if ranges.repeats(earlier, made) else None
    else:
        axis = None if views or site.attrs.get("n", 1) != 1 else site.attrs.get("dim", -1)
    return Range(0.0, math.inf) if isinstance(axis, int) and never_falls(ranges, made, axis) else None


def stepped_axis(site: Site) -> int | None:
    """The axis along which one operand is a step behind the other; ``None`` where they are other parts."""
    positions = [input_of(site, index) for index in (0, 1)]
    later, earlier = ("" if position is None else _views(site, position) for position in positions)
    return _step(later, earlier)


def _step(later: str, earlier: str) -> int | None:
    found = []
    for views, ends in ((later, _LATER), (earlier, _EARLIER)):
        match = _CUT.fullmatch(views)
        if match is None or (match["start"] or match["first"], match["stop"] or match["last"]) not in ends:
            return None
        before = match["before"] or ""
        found.append(int(match["axis"]) if match["axis"] else -1 if "E" in before else before.count("slice"))
    return found[0] if found[0] == found[1] else None


def _views(site: Site, position: int) -> str:
    """All views between an input and what made it."""
    return str((site.attrs.get("views") or {}).get(position, ("", ""))[1])


def _read(ranges: Ranges, site: Site, index: int) -> tuple[Site | None, str]:
    """What made an operand, copies as they are left out, and the views of it since."""
    position = input_of(site, index)
    if position is None or (made := ranges.maker(site, position)) is None:
        return None, ""
    views = _views(site, position)
    if made.op in _PAIRS:
        views = _VALUES.sub("", views)
    if made.op in ("clone", "contiguous") and not made.attrs.get("in_place"):
        inner, before = _read(ranges, made, 0)
        return inner, f"{views} {before}".strip()
    return made, views


def never_falls(ranges: Ranges, site: Site, axis: int, depth: int = 0) -> bool:
    """Whether what a site gives is at least as large at each place as at the place before it.

    Args:
        ranges: bounds of what comes before.
        site: what makes the tensor.
        axis: along which; negative axes count from the last.
        depth: of the recursion.
    """
    if depth > _DEPTH or not site.outputs:
        return False
    rank = len(site.outputs[0].shape)
    axis = axis % rank - rank if rank else -1
    if axis in site.attrs.get("rises", ()):
        return True
    dim = site.attrs.get("dim", -1)
    along = isinstance(dim, int) and rank > 0 and dim % rank - rank == axis
    match site.op:
        case "sort":
            return along and not site.attrs.get("descending") and site.attrs.get("called") != "argsort"
        case "cummax":
            return along
        case "cumsum":
            return along and ranges.operand(site, 0).low >= 0
        case "add":
            return not is_scaled(site) and all(
                _is_level(site, side, axis) or _operand_never_falls(ranges, site, side, axis, depth) for side in (0, 1)
            )
        case "sub":
            return _is_level(site, 1, axis) and _operand_never_falls(ranges, site, 0, axis, depth)
        case "mul" | "div":
            return any(
                _is_level(site, side, axis)
                and ranges.operand(site, side).low >= 0
                and _operand_never_falls(ranges, site, 1 - side, axis, depth)
                for side in ((0, 1) if site.op == "mul" else (1,))
            )
    rising = site.op in RISING and site.attrs.get("called") != "erfc"
    limited = site.op == "clamp" and len(site.inputs) == 1  # by numbers, not by tensors of no known order
    return (rising or limited) and _operand_never_falls(ranges, site, 0, axis, depth)


def _operand_never_falls(ranges: Ranges, site: Site, index: int, axis: int, depth: int) -> bool:
    position, (made, views) = input_of(site, index), _read(ranges, site, index)
    if position is None or made is None or len(site.inputs[position].shape) < -axis:
        return False
    whole = len(made.outputs[0].shape) == len(site.inputs[position].shape) if made.outputs else False
    kept = not views or (whole and not _SLICE.sub("", views).strip())
    return kept and never_falls(ranges, made, axis, depth + 1)


def _is_level(site: Site, index: int, axis: int) -> bool:
    """Whether an operand is one number along an axis."""
    if index in (site.attrs.get("scalars") or {}):
        return True
    position = input_of(site, index)
    if position is None:
        return False
    shape = site.inputs[position].shape
    return len(shape) < -axis or shape[axis] == 1
