"""What is known of the terms of a sum: numbers of the code, stored tensors, and what a format rounds away."""

from __future__ import annotations

import math

from amptune.core.arguments import factor_of_second
from amptune.core.autocast import HALF
from amptune.core.formats import Format
from amptune.core.graph import INPUT, Site
from amptune.core.graph_context import Run
from amptune.core.operands import input_of


def constant_of(run: Run, site: Site, side: int) -> float:
    """The size of an operand that is a literal or a constant; 0 for anything else."""
    made = run.ranges.root(site, side)
    is_literal = side in (site.attrs.get("scalars") or {})
    is_stored = input_of(site, side) in (site.attrs.get("bounds") or {})
    found = run.ranges.operand(site, side)
    known = is_literal or is_stored or (made is not None and run.ranges.is_constant(made))
    factor = abs(factor_of_second(site)) if side == 1 else 1.0
    return found.magnitude * factor if known and math.isfinite(found.magnitude) else 0.0


def is_stored_operand(run: Run, site: Site, index: int) -> bool:
    """Whether an operand is a parameter or a buffer."""
    if index in (site.attrs.get("operand_params") or {}):
        return True
    position = input_of(site, index)
    source = run.ranges.sources(site)[position] if position is not None else ""
    return bool(source) and source != INPUT and source not in run.ranges.graph


def format_of(run: Run, site: Site) -> str:
    """The dtype of a result, as torch spells it."""
    return next(iter(run.dtypes[site.id].outputs), "")


def half_ulp_of(run: Run, site: Site) -> float:
    """Half of what the numbers next to 1 are apart in the format of a result; 0 for formats that are not ours."""
    dtype = format_of(run, site)
    return Format.parse(dtype).epsilon / 2 if dtype in ("float32", *HALF) else 0.0
