"""What the numerical rules share: how a message names formats and recipes, and whether an eps survived rounding."""

from __future__ import annotations

from collections.abc import Iterator

from amptune.core.arguments import limits_of
from amptune.core.autocast import HALF
from amptune.core.bounds.intervals import ANY, Range
from amptune.core.formats import Format
from amptune.core.graph import INPUT, OUTPUT, Site
from amptune.core.graph_context import GraphContext, Run, formats_in, recipes_in
from amptune.core.operands import input_of
from amptune.core.ops import Family, op_named

_DEPTH = 12
_CHAIN = 4
SIGNED_FAMILIES = (Family.GEMM, Family.CONV, Family.NORM, Family.RNN, Family.ATTENTION)
"""What they give has both signs with any weights that training produces."""


def called(site: Site) -> str:
    """What the user's code calls an op, for a message: ``fill_diagonal_`` rather than the op table's name."""
    return str(site.attrs.get("called") or site.op)


def where_in(runs: tuple[Run, ...], site: Site) -> str:
    """``fp16 (under autocast-fp16)``: the formats a site runs in, and the recipes in which it does."""
    return f"{' and '.join(map(str, formats_in(runs, site)))} (under {recipes_in(runs)})"


def runs_in(runs: tuple[Run, ...], site: Site, number_format: Format) -> tuple[Run, ...]:
    """Those runs in which the site computes in one format."""
    return tuple(run for run in runs if run.dtypes[site.id].compute == number_format.torch_name)


def delivering(context: GraphContext, site: Site, number_format: Format) -> tuple[Run, ...]:
    """The runs in which the result of a site is rounded to one format, whatever it was computed in."""
    return tuple(run for run in context.runs if number_format.torch_name in run.dtypes[site.id].outputs)


def source_dtype(run: Run, site: Site, index: int) -> str:
    """The dtype in which an operand was rounded last, before any cast of autocast."""
    given = run.dtypes[site.id].given
    return given[index] if index < len(given) else ""


def is_signed(run: Run, site: Site, index: int = 0) -> bool:
    """Whether an operand comes straight from a layer whose outputs have both signs."""
    root = run.ranges.root(site, index)
    signed = root is not None and op_named(root.op).family in SIGNED_FAMILIES
    return signed and run.ranges.operand(site, index).low < 0


def by_autocast(runs: tuple[Run, ...], site: Site) -> bool:
    """Whether it is autocast that narrows what a site reads, in each of the runs, rather than a cast of the user's."""
    return all(
        any(given == "float32" and read in HALF for given, read in zip(each.given, each.inputs, strict=False))
        for each in (run.dtypes[site.id] for run in runs)
    )


def cast_inputs(site: Site) -> set[int]:
    """Positions of the inputs that the code casts."""
    return {*(site.attrs.get("casts") or {}), *(site.attrs.get("like") or {})}


def eps_before(run: Run, site: Site, index: int = 0) -> float | None:
    """The literal that guards an operand against zero, as in ``x + 1e-8`` or ``x.clamp(min=1e-8)``."""
    root = run.ranges.root(site, index)
    if root is None or root.op not in ("add", "clamp", "maximum"):
        return None
    literals = [limits_of(root)[0]] if root.op == "clamp" else list((root.attrs.get("scalars") or {}).values())
    for bounds in (root.attrs.get("bounds") or {}).values():
        if bounds[0] == bounds[1]:
            literals.append(bounds[0])  # a number in a buffer or a constant tensor
    return next((float(v) for v in literals if isinstance(v, (int, float)) and 0 < v < 1), None)


def lost_eps(context: GraphContext, site: Site) -> tuple[float, tuple[Run, ...]]:
    """The eps that is added to what a site reads, where nothing is known of that, and the runs in whose format it
    rounds to zero."""
    root = context.runs[0].ranges.root(site) if context.runs else None
    if root is None or root.op != "add" or context.runs[0].ranges.operand(site, 0).is_known:
        return 0.0, ()
    eps = next((float(v) for v in (root.attrs.get("scalars") or {}).values() if 0 < v < 1), 0.0)
    if not eps:
        return 0.0, ()
    halves = (Format.FP16, Format.BF16)
    return eps, tuple(run for each in halves if each.round(eps) == 0 for run in delivering(context, root, each))


def is_signed_sum(run: Run, site: Site) -> bool:
    """Whether a root's eps is added to what has both signs, so that it protects nothing in any format."""
    root = run.ranges.root(site)
    return root is not None and root.op == "add" and run.ranges.operand(root, 0).low < 0


def floating_sites(context: GraphContext, *ops: str) -> Iterator[Site]:
    """Sites of the named ops, but for those that are worked out from constants: they are what the user wants."""
    return (site for site in context.graph if site.op in ops and not is_settled(context, site))


def is_settled(context: GraphContext, site: Site) -> bool:
    """Whether a site's value is the same in every run: it is worked out from constants of the forward."""
    return bool(context.runs) and context.runs[0].ranges.is_constant(site)


def reads_weights_alone(context: GraphContext, site: Site, depth: int = 0) -> bool:
    """Whether what a site reads is made of parameters and constants: it moves slowly, and no input reaches it."""
    if depth > _DEPTH or not context.runs:
        return False
    for index, source in enumerate(context.runs[0].ranges.sources(site)):
        if source in context.graph:
            if not reads_weights_alone(context, context.graph[source], depth + 1):
                return False
        elif source == INPUT or index in (site.attrs.get("batch") or {}) or site.attrs.get("random"):
            return False
    return True


def is_stored(context: GraphContext, root: Site, depth: int = 0) -> bool:
    """Whether a value is worked out from constants and from buffers that the forward does not write: it is the same in
    every step, as decays are, and not an activation that comes to zero one day."""
    ranges, bounds = context.runs[0].ranges, root.attrs.get("bounds") or {}
    if ranges.is_constant(root):
        return True
    if depth > _DEPTH or root.params or root.attrs.get("random"):
        return False
    for index, source in enumerate(ranges.sources(root)):
        if source in context.graph:
            if not is_stored(context, context.graph[source], depth + 1):
                return False
        elif source == INPUT or (source and index not in bounds):
            return False
    return True


def of_batch(context: GraphContext, site: Site, index: int = 0) -> Range:
    """Bounds of an operand with the numbers of the batch, where no weight has a part in it: data is what it is, where
    an activation goes where training takes it. Everything elsewhere."""
    bounds = context.bounds(context.runs[0]) if context.runs else None
    if bounds is None or site.id in context.weighted:
        return ANY
    return bounds.operand(site, index)


_KEEP_ZERO = frozenset({"neg", "abs", "relu", "sqrt", "square", "sin", "tan", "tanh", "log1p", "expm1", "clone"})


def has_zeros_of_batch(context: GraphContext, site: Site, place: int, depth: int = 0) -> bool:
    """Whether an operand is zero wherever a tensor of the batch is, which has zeros: the tensor itself, or a product or
    quotient of it, whatever the weights have a part in."""
    bounds = context.bounds(context.runs[0]) if context.runs else None
    if bounds is None or depth > _DEPTH:
        return False
    if input_of(site, place) in (site.attrs.get("batch") or {}):
        return 0.0 in ((found := bounds.operand(site, place)).low, found.high)
    made = context.runs[0].ranges.root(site, place)
    if made is None:
        return False
    factors = (0, 1) if made.op == "mul" else (0,) if made.op == "div" or made.op in _KEEP_ZERO else ()
    return any(has_zeros_of_batch(context, made, factor, depth + 1) for factor in factors)


BATCH_MARGIN = 4
"""How much larger than in the batch at hand the numbers of a data set are taken to be."""
CLOSED_AT_ZERO = frozenset({"relu", "relu6", "threshold", "hardsigmoid"})
"""Activations that give zero for whole ranges of what they read, and let no gradient through where they do."""


def gives_zeros(run: Run, site: Site, index: int = 0) -> bool:
    """Whether an operand comes straight from an op that gives zero for much of what it reads."""
    root = run.ranges.root(site, index)
    if root is None or root.op in CLOSED_AT_ZERO:
        return root is not None
    if root.op == "clamp":
        return limits_of(root)[0] == 0
    return root.op == "maximum" and any(run.ranges.operand(root, side) == Range(0.0, 0.0) for side in (0, 1))


def is_merged(context: GraphContext, site: Site) -> bool:
    """Whether what leads to a site runs through a helper that several calls share: its bounds are those of all."""
    current: Site | None = site
    for _ in range(_DEPTH):
        if current is None or (current.kind == "function" and "later_sources" in current.attrs):
            return current is not None
        before = next((name for name in context.runs[0].ranges.sources(current) if name in context.graph), None)
        current = context.graph[before] if before is not None and before != current.id else None
    return False


def chain(context: GraphContext, site: Site) -> str:
    """The ops that lead to a site, for a message: ``fc -> softmax -> log``."""
    names, current = [site.op], site
    for _ in range(_CHAIN):
        before = next((name for name in context.runs[0].ranges.sources(current) if name in context.graph), None)
        if before is None or context.graph[before].id == current.id:
            break
        current = context.graph[before]
        names.append(current.id if current.is_module else current.op)
    return " -> ".join(reversed(names))


def is_guarded_after(context: GraphContext, site: Site) -> bool:
    """Whether infinities are replaced right behind a site: nan_to_num, or masked_fill or ``y[isinf(y)] = 0`` where the
    result is infinite."""
    for after in context.graph.consumers(site.id):
        if after.op == "nan_to_num":
            return True
        if after.op in ("masked_fill", "where", "index_put"):
            tests = [context.runs[0].ranges.root(after, place) for place in (0, 1)] if context.runs else []
            if after.op == "index_put":
                tests = list(context.graph.producers(after.id))
            for test in tests:
                if (
                    test is not None
                    and test.op in ("isinf", "isnan", "eq")
                    and site in context.graph.producers(test.id)
                ):
                    return True
    return False


_COMPARES = frozenset({"gt", "lt", "ge", "le", "eq", "ne", "isinf", "isnan"})


def is_compared_alone(context: GraphContext, site: Site) -> bool:
    """Whether all that reads a site compares it: NaN is neither above nor below, and no gradient comes back."""
    readers = context.graph.consumers(site.id)
    return bool(readers) and all(each.op in _COMPARES for each in readers)


def ends_as_integers(context: GraphContext, site: Site) -> bool:
    """Whether what has no gradient is read as integers in the end, as places in a table: an
    infinity there is the largest place, which a choice right behind takes out."""
    if not context.train or any(tensor.requires_grad for tensor in site.outputs):
        return False
    fresh, reached = [site.id], {site.id}
    while fresh:
        name = fresh.pop()
        readers = context.graph.consumers(name)
        after = [each for each in readers if _reads_numbers(context, each, name)]
        is_trained = any(tensor.requires_grad for each in after for tensor in each.outputs)
        if is_trained or not readers or OUTPUT in context.graph.graph.successors(name):
            return False
        fresh += [each.id for each in after if each.id not in reached]
        reached.update(each.id for each in after)
    return True


def _reads_numbers(context: GraphContext, site: Site, source: str) -> bool:
    """Whether a site reads what another one made as the numbers that they are, and not as integers made of them."""
    sources = context.runs[0].ranges.sources(site) if context.runs else site.sources
    return any(each == source and tensor.is_floating for each, tensor in zip(sources, site.inputs, strict=False))


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
