"""Matrix products and floating point operations of one op, from its shapes.

Counted: matrix products, convolutions, attention and recurrent layers, forward only, a multiply and an add as two
operations. Softmax, norms and pointwise ops count as zero, as in torch.utils.flop_counter: bytes price them.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import fx

from amptune.core.graph import Gemm

Shape = tuple[int, ...]
_Handler = Callable[[list[Any], dict[str, Any], Any], tuple[Gemm, ...]]
_GATES = {"lstm": 4, "gru": 3, "rnn": 1, "lstm_cell": 4, "gru_cell": 3, "rnn_cell": 1}


def gemms_of(op: str, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> tuple[Gemm, ...]:
    """The products that one call of ``op`` runs; empty for an op without any.

    Args:
        op: name in the op table.
        args, kwargs: in torch's argument order; tensors may be fake, or fx nodes with ``meta["val"]``.
        output: what it returned.
    """
    handler = _HANDLERS.get(op)
    return handler(list(args), dict(kwargs), output) if handler else ()


def shape_of(value: Any) -> Shape:
    """Shape of a tensor or of a node's tensor, () for what is none."""
    if isinstance(value, fx.Node):
        value = value.meta.get("val")
    return tuple(int(extent) for extent in value.shape) if hasattr(value, "shape") else ()


def _argument(args: list[Any], kwargs: dict[str, Any], index: int, name: str) -> Any:
    return args[index] if index < len(args) else kwargs.get(name)


def _named(args: list[Any], kwargs: dict[str, Any], index: int, *names: str) -> Any:
    """An argument that has several names, as mat2 and other."""
    return args[index] if index < len(args) else next((kwargs[name] for name in names if name in kwargs), None)


def _linear(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
    given, weight = shape_of(_argument(args, kwargs, 0, "input")), shape_of(_argument(args, kwargs, 1, "weight"))
    return (Gemm(m=math.prod(given[:-1]), n=math.prod(weight[:-1]), k=weight[-1]),)


def _matmul(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
    left, right = _named(args, kwargs, 0, "input", "self"), _named(args, kwargs, 1, "other", "mat2", "vec", "tensor2")
    return product_of(shape_of(left), shape_of(right))


def _added_product(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
    left, right = _named(args, kwargs, 1, "mat1", "mat", "batch1"), _named(args, kwargs, 2, "mat2", "vec", "batch2")
    return product_of(shape_of(left), shape_of(right))


def product_of(left: Shape, right: Shape) -> tuple[Gemm, ...]:
    """torch.matmul's product, with broadcasting; a batch of rows against one matrix is folded into M."""
    if not left or not right:
        return ()
    rows, columns = left[:-1] or (1,), right[-1] if len(right) > 1 else 1
    if len(right) <= 2:
        return (Gemm(m=math.prod(rows), n=columns, k=left[-1]),)
    batch = math.prod(_broadcast(rows[:-1], right[:-2]))
    return (Gemm(m=rows[-1], n=columns, k=left[-1], batch=batch),)


def _broadcast(left: Shape, right: Shape) -> Shape:
    width = max(len(left), len(right))
    padded = [(1,) * (width - len(shape)) + shape for shape in (left, right)]
    return tuple(max(pair) for pair in zip(*padded, strict=True))


def _grouped(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
    """Rows (T, K) sorted by group against matrices (G, K, N): how the rows fall into groups depends on the data, so
    they are taken as even."""
    rows, matrices = shape_of(args[0]), shape_of(_named(args, kwargs, 1, "mat_b", "mat2"))
    if len(rows) != 2 or len(matrices) != 3:
        return product_of(rows, matrices)
    groups = matrices[0]
    return (Gemm(m=-(-rows[0] // groups), n=matrices[2], k=matrices[1], batch=groups),)


def _outer(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
    left, right = shape_of(args[-2]), shape_of(args[-1])
    return (Gemm(m=math.prod(left), n=math.prod(right), k=1),)


def _dot(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
    given = shape_of(args[0])
    return (Gemm(m=1, n=1, k=given[-1], batch=math.prod(given[:-1])),) if given else ()


def _vecdot(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
    given, dim = shape_of(args[0]), kwargs.get("dim", args[2] if len(args) > 2 else -1)
    return (Gemm(m=1, n=1, k=given[dim], batch=math.prod(shape_of(output))),) if given else ()


def _einsum(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
    operands = list(args[1]) if len(args) > 1 and isinstance(args[1], list | tuple) else args[1:]
    return einsum_products(args[0], [shape_of(operand) for operand in operands]) if isinstance(args[0], str) else ()


def einsum_products(equation: str, shapes: Sequence[Shape]) -> tuple[Gemm, ...]:
    """The products of an einsum, contracted from left to right."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = [_letters(term, shape) for term, shape in zip(left.split(","), shapes, strict=False)]
    counts = "".join("".join(term) for term in terms)
    if not arrow:
        result = "".join(sorted(letter for letter in set(counts) if counts.count(letter) == 1))
    wanted = set(_letters(result, None)) | {letter for letter in counts if not letter.isalpha()}
    gemms, current = [], terms[0]
    for index, term in enumerate(terms[1:], start=1):
        kept = wanted | {letter for later in terms[index + 1 :] for letter in later}
        gemm, current = _contracted(current, term, kept)
        gemms.append(gemm)
    return tuple(gemms)


def _letters(term: str, shape: Shape | None) -> dict[str, int]:
    """Index letter -> extent; the dimensions of an ellipsis get digits as letters, counted from the right."""
    before, dots, after = term.partition("...")
    if shape is None:
        return dict.fromkeys(before + after, 0)
    hidden = len(shape) - len(before) - len(after) if dots else 0
    names = [*before, *(str(number) for number in range(hidden, 0, -1)), *after]
    return dict(zip(names, shape, strict=False))


def _contracted(left: dict[str, int], right: dict[str, int], kept: set[str]) -> tuple[Gemm, dict[str, int]]:
    shared = left.keys() & right.keys()
    batch = [letter for letter in shared if letter in kept]
    inner = [letter for letter in shared if letter not in kept]
    rows = [letter for letter in left.keys() - shared if letter in kept]
    columns = [letter for letter in right.keys() - shared if letter in kept]
    extents = right | left
    sizes = [math.prod(extents[letter] for letter in group) for group in (rows, columns, inner, batch)]
    gemm = Gemm(m=sizes[0], n=sizes[1], k=sizes[2], batch=sizes[3])
    return gemm, {letter: extents[letter] for letter in [*batch, *rows, *columns]}


def _convolution(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
    weight, result = shape_of(_argument(args, kwargs, 1, "weight")), shape_of(output)
    groups = _groups(args, kwargs, 6)
    positions = math.prod(result) // weight[0] if result else 0
    return (Gemm(m=positions, n=weight[0] // groups, k=math.prod(weight[1:]), batch=groups),)


def _transposed_convolution(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
    """Each input position is multiplied by the kernel of all output channels, then added in place (col2im)."""
    given, weight = shape_of(_argument(args, kwargs, 0, "input")), shape_of(_argument(args, kwargs, 1, "weight"))
    groups = _groups(args, kwargs, 6)
    positions = math.prod(given) // weight[0]
    return (Gemm(m=positions, n=math.prod(weight[1:]), k=weight[0] // groups, batch=groups),)


def _groups(args: list[Any], kwargs: dict[str, Any], index: int) -> int:
    """The groups argument; aten.convolution has it in place 8, after ``transposed`` and ``output_padding``."""
    found = args[8] if len(args) > 8 else _argument(args, kwargs, index, "groups")
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 1


def _attention(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
    """Both products of attention, over all pairs: a causal kernel skips about half of them."""
    query = shape_of(_argument(args, kwargs, 0, "query"))
    key, value = shape_of(_argument(args, kwargs, 1, "key")), shape_of(_argument(args, kwargs, 2, "value"))
    batch = math.prod(query[:-2])
    scores = Gemm(m=query[-2], n=key[-2], k=query[-1], batch=batch)
    return scores, Gemm(m=query[-2], n=value[-1], k=key[-2], batch=batch)


def _multi_head(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
    """F.multi_head_attention_forward(query (L, N, E), key (S, N, E), value, embed_dim, heads, ...)."""
    query, key, value = (shape_of(args[index]) for index in range(3))
    width, heads = int(args[3]), int(args[4])
    queries, keys = math.prod(query[:-1]), math.prod(key[:-1])
    sequences = query[1] if len(query) > 2 else 1
    projections = (
        Gemm(m=queries, n=width, k=query[-1]),
        Gemm(m=keys, n=width, k=key[-1]),
        Gemm(m=keys, n=width, k=value[-1]),
    )
    head, batch = width // heads, sequences * heads
    scores = Gemm(m=query[0], n=key[0], k=head, batch=batch)
    mixed = Gemm(m=query[0], n=head, k=key[0], batch=batch)
    return *projections, scores, mixed, Gemm(m=queries, n=width, k=width)


def _recurrent(gates: int) -> _Handler:
    """lstm(input, hidden, weights, ...) or, for packed sequences, lstm(data, batch_sizes, hidden, weights, ...).

    All steps of a layer share one input product; the recurrent product runs once a step.
    """

    def handler(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
        packed = isinstance(args[3], list | tuple)
        hidden, weights = (args[2], args[3]) if packed else (args[1], args[2])
        state = shape_of(hidden[0] if isinstance(hidden, list | tuple) else hidden)
        rows = math.prod(shape_of(args[0])[:-1])
        batch = state[-2] if len(state) > 2 else 1
        matrices = [shape for weight in weights if len(shape := shape_of(weight)) == 2]
        return tuple(_layers(matrices, gates, rows, steps=max(1, rows // batch)))

    return handler


def _layers(matrices: list[Shape], gates: int, rows: int, steps: int) -> Iterator[Gemm]:
    """Weights come as (input, recurrent) for each layer and direction, and a projection after them in some LSTMs."""
    left = collections.deque(matrices)
    while len(left) > 1:
        inner, recurrent = left.popleft(), left.popleft()
        hidden, state = inner[0] // gates, recurrent[1]
        yield Gemm(m=rows, n=inner[0], k=inner[1])
        yield Gemm(m=max(1, rows // steps), n=recurrent[0], k=state, batch=steps)
        if state < hidden and left and left[0] == (state, hidden):
            left.popleft()
            yield Gemm(m=max(1, rows // steps), n=state, k=hidden, batch=steps)


def _cell(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
    """lstm_cell(input, hidden, w_ih, w_hh, ...)."""
    given, inner, recurrent = shape_of(args[0]), shape_of(args[2]), shape_of(args[3])
    rows = math.prod(given[:-1])
    return Gemm(m=rows, n=inner[0], k=inner[1]), Gemm(m=rows, n=recurrent[0], k=recurrent[1])


def _bilinear(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
    left, weight = shape_of(args[0]), shape_of(args[2])
    rows = math.prod(left[:-1])
    return Gemm(m=rows, n=weight[0] * weight[2], k=weight[1]), Gemm(m=1, n=weight[0], k=weight[2], batch=rows)


def _tensordot(args: list[Any], kwargs: dict[str, Any], output: Any) -> tuple[Gemm, ...]:
    left, right, result = shape_of(args[0]), shape_of(args[1]), shape_of(output)
    kept = math.prod(result)
    inner = math.isqrt(math.prod(left) * math.prod(right) // max(1, kept))
    dims = kwargs.get("dims", args[2] if len(args) > 2 else 2)
    pairs = math.prod(left) * math.prod(right) == kept  # kron, which sums nothing
    if not pairs and isinstance(dims, int) and 0 < dims <= min(len(left), len(right)):  # an axis of one meets any other
        inner = math.prod(map(max, left[-dims:], right[:dims]))
    rows = math.prod(left) // max(1, inner)
    return (Gemm(m=rows, n=kept // max(1, rows), k=inner),)


_HANDLERS: dict[str, _Handler] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv"), _matmul),
    **dict.fromkeys(("addmm", "addmv", "addbmm", "baddbmm"), _added_product),
    **dict.fromkeys(("dot", "vdot"), _dot),
    "linalg_vecdot": _vecdot,
    "addr": _outer,
    "grouped_mm": _grouped,
    "einsum": _einsum,
    "tensordot": _tensordot,
    "bilinear": _bilinear,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    **dict.fromkeys(("scaled_dot_product_attention", "flex_attention"), _attention),
    "multi_head_attention": _multi_head,
    **{name: _recurrent(_GATES[name]) for name in ("lstm", "gru", "rnn")},
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_cell"), _cell),
}
