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


_PRODUCTS = frozenset({"matmul", "mm", "bmm"})
_DEPTH = 6


def rank_by_shape(run: Run, site: Site, index: int = 0, depth: int = 0) -> int:
    """The largest rank that the matrices of an operand can have by how many terms the products run over that they come
    of; 0 where nothing is known."""
    made, position = run.ranges.root(site, index), input_of(site, index)
    if made is None or position is None or depth > _DEPTH or not made.outputs:
        return 0
    shape, seen = made.outputs[0].shape[-2:], site.inputs[position].shape[-2:]
    if len(shape) < 2 or sorted(shape) != sorted(seen):
        return 0  # numbers laid out anew
    scalars = made.attrs.get("scalars") or {}
    if made.op in ("mul", "div") and len(scalars) == 1:
        return rank_by_shape(run, made, 1 if 0 in scalars else 0, depth + 1)
    ranks = [rank_by_shape(run, made, side, depth + 1) for side in (0, 1)]
    return min((each for each in (_terms(made), *ranks) if each), default=0) if made.op in _PRODUCTS else 0


def _terms(product: Site) -> int:
    """How many terms a product of matrices adds up for each number; 0 where its operands do not say."""
    for side, axis in ((0, -1), (1, -2)):
        position = input_of(product, side)
        if position is not None and len(product.inputs[position].shape) >= 2:
            return product.inputs[position].shape[axis]
    return 0


def missing_rank(run: Run, site: Site, index: int = 0) -> tuple[int, int]:
    """The rank and the rows of the matrices whose eigenvalues or singular values an operand is, where they have more
    rows than rank; two zeros otherwise."""
    made = run.ranges.root(site, index)
    if made is None or not made.inputs or len(made.inputs[0].shape) < 2:
        return 0, 0
    rank, rows = rank_by_shape(run, made), min(made.inputs[0].shape[-2:])
    return (rank, rows) if 0 < rank < rows else (0, 0)
