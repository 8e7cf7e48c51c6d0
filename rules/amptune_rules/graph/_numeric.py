"""What the numerical rules share: how a message names formats and recipes, and whether an eps survived rounding."""

from __future__ import annotations

from collections.abc import Iterator

from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, formats_in, recipes_in
from amptune.core.ops import Family, op_named

SIGNED_FAMILIES = (Family.GEMM, Family.CONV, Family.NORM, Family.RNN, Family.ATTENTION)
"""What they give has both signs with any weights that training produces."""


def where_in(runs: tuple[Run, ...], site: Site) -> str:
    """``fp16 (under autocast-fp16)``: the formats a site runs in, and the recipes in which it does."""
    return f"{' and '.join(map(str, formats_in(runs, site)))} (under {recipes_in(runs)})"


def runs_in(runs: tuple[Run, ...], site: Site, number_format: Format) -> tuple[Run, ...]:
    """Those runs in which the site computes in one format."""
    return tuple(run for run in runs if run.dtypes[site.id].compute == number_format.torch_name)


def source_dtype(run: Run, site: Site, index: int) -> str:
    """The dtype in which an operand was rounded last, before any cast of autocast."""
    given = run.dtypes[site.id].given
    return given[index] if index < len(given) else ""


def is_signed(run: Run, site: Site, index: int = 0) -> bool:
    """Whether an operand comes straight from a layer whose outputs have both signs."""
    root = run.ranges.root(site, index)
    return root is not None and op_named(root.op).family in SIGNED_FAMILIES


def eps_before(run: Run, site: Site, index: int = 0) -> float | None:
    """The literal that guards an operand against zero, as in ``x + 1e-8`` or ``x.clamp(min=1e-8)``."""
    root = run.ranges.root(site, index)
    if root is None or root.op not in ("add", "clamp", "maximum"):
        return None
    literals = [*(root.attrs.get("scalars") or {}).values(), root.attrs.get("min")]
    return next((float(v) for v in literals if isinstance(v, (int, float)) and 0 < v < 1), None)


def floating_sites(context: GraphContext, *ops: str) -> Iterator[Site]:
    """Sites of the named ops."""
    return (site for site in context.graph if site.op in ops)


def axis_length(site: Site) -> int:
    """Elements along the axes that a softmax, cumulative op or reduction runs over."""
    shape = site.inputs[0].shape if site.inputs else ()
    dims = site.attrs.get("dim")
    if dims is None or not shape:
        reduced = site.inputs[0].numel if site.inputs else 0
        kept = site.outputs[0].numel if site.outputs else 1
        return reduced // max(kept, 1) if reduced != kept else (shape[-1] if shape else 0)
    length = 1
    for dim in dims if isinstance(dims, (list, tuple)) else (dims,):
        length *= shape[int(dim)] if -len(shape) <= int(dim) < len(shape) else 1
    return length
