"""Eigenvalues and singular values: zero where a matrix is singular, and below it by rounding."""

from __future__ import annotations

import re

from amptune.core.graph import Site
from amptune.core.graph_context import Run
from amptune.core.operands import input_of
from amptune_rules.graph._numeric import called

_PICKED = re.compile(r"(?:slice|getitem)\('?(\w+)")
_VALUES = {"eigh": ("0", "eigenvalues"), "svd": ("1", "S")}
_ALONE = ("eigvalsh", "svdvals")
_NAMES = {
    "eigh": "eigenvalues, which rounding takes to zero and below where the matrix is singular; clamp them, or add to "
    "its diagonal before",
    "svd": "singular values, which are zero where the matrix is singular; clamp them",
}


def spectrum_behind(run: Run, site: Site, index: int = 0) -> str:
    """What an operand is, and what to do, where it is eigenvalues of a symmetric matrix, or singular values, to
    whose matrix nothing constant was added before; empty for anything else."""
    made, position = run.ranges.root(site, index), input_of(site, index)
    if made is None or made.op not in _VALUES or position is None or is_loaded(run, made):
        return ""
    views = (site.attrs.get("views") or {}).get(position, ("", ""))[1]
    picked = _PICKED.findall(views)
    is_values = called(made).endswith(_ALONE) or bool(picked and picked[-1] in _VALUES[made.op])
    return _NAMES[made.op] if is_values else ""


def is_loaded(run: Run, site: Site) -> bool:
    """Whether a constant was added to what a site reads, as to the diagonal of a matrix."""
    total = run.ranges.root(site)
    if total is None or total.op != "add":
        return False
    sides = [run.ranges.root(total, side) for side in (0, 1)]
    return bool(total.attrs.get("scalars")) or any(side is None or run.ranges.is_constant(side) for side in sides)
