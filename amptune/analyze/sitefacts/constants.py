"""Bounds of tensors that no site makes: constants, buffers, random numbers and arithmetic on integers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensor

from amptune.analyze.sitefacts import masks
from amptune.analyze.sitefacts.created import created
from amptune.analyze.sitefacts.dtypes import REVERSED, passed
from amptune.analyze.sitefacts.folding import Folded
from amptune.capture.flow import picked
from amptune.capture.parameters import tensor_meta
from amptune.core.bounds.intervals import ANY, UNIT, Range, point
from amptune.core.bounds.narrowing import narrowed, of_integers
from amptune.core.bounds.transfer.table import NORMAL, RULES, uniform
from amptune.core.graph import Site
from amptune.core.operands import COPIES_ONE
from amptune.core.ops import Family, op_named

_TRANSPARENT = (Family.VIEW, Family.CAST)
_PLAIN = (torch.float32, torch.float64, torch.int64, torch.bool)
_LARGE = 1 << 22
"""Elements from which nothing is copied to read it."""
_RANDOM = ("rand", "rand_like")
_PICKS = ("gather", "index_select")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class NodeBounds:
    """Bounds of nodes of a captured graph, as far as they follow from constants and types.

    Args:
        module: the captured graph with its constants.
        owners: name of a node -> id of the site that covers it.
    """

    def __init__(self, module: fx.GraphModule, owners: Mapping[str, str]) -> None:
        self._module = module
        self._owners = owners
        self._known: dict[fx.Node, Range | None] = {}
        self._written = {
            _root(written)
            for node in module.graph.nodes
            for written in node.meta.get("amptune_writes", ())
            if op_named(_op(node)).family is not Family.VIEW  # detach_ changes no number
        }
        self._first_writers: dict[fx.Node, fx.Node] = {}
        for node in module.graph.nodes:
            for written in node.meta.get("amptune_writes", ()):
                self._first_writers.setdefault(_root(written), node)
        self._folded = Folded(self._tensor, lambda node: node not in self._written)
        self._axes: dict[_Numbers, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def worked_out(self, node: fx.Node) -> torch.Tensor | None:
        """The numbers of a node that is worked out from constants; ``None`` for others, and for large ones."""
        return self._folded.of(node)

    def exact(self, node: fx.Node) -> tuple[float, float, int] | None:
        """Extremes and number of zeros of a node that is worked out from constants; ``None`` for others."""
        value = self._folded.of(node)
        bounds = range_of(value) if value is not None and value.is_floating_point() else None
        return (bounds.low, bounds.high, int((value == 0).sum())) if value is not None and bounds is not None else None

    def axes_kept(self, node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Axes of a constant mask, counted from the last as -1, along which every line has a number that is not zero,
        and those along which every line has a zero."""
        value = self._folded.of(node)
        if value is None:
            return (), ()
        key = _numbers_of(value)
        if key not in self._axes:
            self._axes[key] = masks.axes_kept(value)
        return self._axes[key]

    def triangles(self, node: fx.Node) -> tuple[bool, bool]:
        """Whether a constant mask holds nowhere above the diagonal, and whether it holds everywhere above it."""
        value = self._folded.of(node)
        return (False, False) if value is None else masks.triangles(value)

    def rises(self, node: fx.Node) -> tuple[int, ...]:
        """Axes, counted from the last as -1, along which a tensor never falls: one that is worked out from constants,
        or such a one with random numbers on top that are too small to change its order."""
        value, above = self._folded.of(node), None
        if value is None and _op(node) == "add" and len(node.args) == 2 and not node.kwargs:
            value, above = self._jittered(node)
        if value is None or not value.is_floating_point() or value.dim() == 0:
            return ()
        low, high = value, value
        if above is not None:
            low, high = value + above.clamp(max=0), value + above.clamp(min=0)
        rounding = 4 * torch.finfo(value.dtype).eps * float(value.abs().max()) if value.numel() else 0.0
        found = range(-low.dim(), 0)
        return tuple(axis for axis in found if low.shape[axis] > 1 and _stays_in_order(low, high, axis, rounding))

    def _jittered(self, node: fx.Node) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """A constant and the constant to add of which a random number in [0, 1) says how much: ``x + rand() * y``."""
        for base, share in (node.args, node.args[::-1]):
            if not isinstance(base, fx.Node) or not isinstance(share, fx.Node) or _op(share) not in ("mul", "rand"):
                continue
            value = self._folded.of(base)
            if value is None:
                continue
            if _op(share) == "rand":
                return value, torch.ones((), dtype=value.dtype)
            for number, drawn in (share.args[:2], share.args[1::-1]):
                if not isinstance(drawn, fx.Node) or _op(_root(drawn)) not in _RANDOM:
                    continue
                if isinstance(number, int | float):
                    return value, torch.tensor(float(number), dtype=value.dtype)
                if isinstance(number, fx.Node) and (most := self._folded.of(number)) is not None:
                    return value, most
        return None, None

    def pairs_with_itself(self, node: fx.Node) -> bool:
        """Whether a mask says which numbers of a vector are equal, so that its diagonal holds whatever they are."""
        test, seen = _root(node), _tensor(node)
        if _op(test) != "eq" or len(test.all_input_nodes) != 2 or (made := _tensor(test)) is None or seen is None:
            return False
        left, right = test.all_input_nodes
        shapes = [tuple(each.shape) for each in (_tensor(left), _tensor(right)) if each is not None]
        size, square = made.shape[-1], made.dim() == 2 and made.shape[0] == made.shape[1]
        ways = {(size, 1)} if (size, 1) in shapes else set()
        other = {(1, size), (size,)}.intersection(shapes)
        alone = _root(left) is _root(right) and _root(left) not in self._written
        return bool(alone and square and ways and other and seen.shape == made.shape)

    def is_causal(self, node: fx.Node) -> bool:
        """Whether a constant mask of attention keeps what is on and below the diagonal, and nothing else."""
        value = self._folded.of(node)
        return value is not None and masks.is_causal(value)

    def overwritten(self, node: fx.Node, writer: fx.Node) -> Range | None:
        """What a tensor was filled with before ``writer``, the first that writes to it."""
        base = _root(node)
        return created(_op(base), base) if self._first_writers.get(base) is writer else None

    def as_stored(self, node: fx.Node, reader: fx.Node) -> Range | None:
        """The numbers of a buffer that the forward writes, as they are where it is read before that."""
        base = _root(node)
        writer = self._first_writers.get(base)
        if base.op != "get_attr" or writer is None or not reader < writer:
            return None
        value = self._real(base)
        return range_of(value) if value is not None else None

    def before_writes(self, node: fx.Node) -> Range | None:
        """What a tensor was filled with that the forward writes into somewhere."""
        base = _root(node)
        return created(_op(base), base) if base in self._written else None

    def of(self, node: fx.Node) -> Range | None:
        """Bounds of a node that no site covers; ``None`` for one that a site or the batch makes, through views."""
        root = _root(node)
        if root.name in self._owners or root.op == "placeholder" or root in self._written:
            return None
        if root not in self._known:
            self._known[root] = ANY  # for a cycle, which a graph does not have
            found = self._bounds(root)
            self._known[root] = found.within(Range(1.0, math.inf)) if found and _is_index_from_one(root) else found
        known = self._known[root]
        return narrowed(known, passed(node)) if known is not None else None

    def is_one_hot(self, node: fx.Node) -> bool:
        """Whether one_hot made a tensor, with rows as long as these, and nothing was written into it since."""
        if _op(base := _root(node)) != "one_hot" or base in self._written:
            return False
        made, seen = _tensor(base), _tensor(node)
        return made is not None and seen is not None and made.shape[-1:] == seen.shape[-1:]

    def is_random(self, node: fx.Node) -> bool:
        """Whether a tensor is drawn in the forward."""
        return op_named(_op(_root(node))).family is Family.RANDOM

    def stored(self) -> dict[str, Range]:
        """Bounds of the model's buffers that the forward does not write."""
        found = {}
        for node in self._module.graph.nodes:
            name = node.meta.get("amptune_stored")
            if name is not None and node not in self._written and (bounds := self._value(node)) is not None:
                found[str(name)] = bounds
        return found

    def _bounds(self, node: fx.Node) -> Range | None:
        if node.op == "get_attr":
            return self._value(node)
        op = _op(node)
        if op in _RANDOM:
            return uniform(str(value.dtype).removeprefix("torch.")) if (value := _tensor(node)) is not None else UNIT
        if op in ("randn", "randn_like"):
            return NORMAL
        if op == "bernoulli":
            return UNIT
        filled = created(op, node)
        if filled is not None:
            return filled
        if op_named(op).family in (Family.CREATE, Family.RANDOM):
            return ANY
        if op in COPIES_ONE and node.args and isinstance(node.args[0], fx.Node):
            return self._operand(node.args[0])
        return self._computed(op, node)

    def _value(self, node: fx.Node) -> Range | None:
        """The extremes of a constant or buffer that is real."""
        value = self._tensor(node)
        return range_of(value) if value is not None else None

    def _tensor(self, node: fx.Node) -> torch.Tensor | None:
        """A constant or buffer that is real and that training does not change."""
        return None if str(node.target).endswith(_STATISTICS) or node in self._written else self._real(node)

    def _real(self, node: fx.Node) -> torch.Tensor | None:
        """A constant or buffer with its numbers; not a parameter, nor an input."""
        if node.op != "get_attr":
            return None
        value: Any = self._module
        try:
            for part in str(node.target).split("."):
                value = getattr(value, part)
        except AttributeError:
            return None
        if isinstance(value, torch.nn.Parameter):
            return None
        is_real = isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor) and value.device.type != "meta"
        return value if is_real else None

    def _computed(self, op: str, node: fx.Node) -> Range:
        """Arithmetic on integers, by the rules of the op table."""
        call = node.meta.get("amptune_call")
        rule = RULES.get(op)
        if call is None or rule is None:
            return _of_type(node)
        metas = [tensor_meta(value) for argument in node.all_input_nodes if (value := _tensor(argument)) is not None]
        own, called = _tensor(node), str(getattr(call.function, "__name__", "")).strip("_")
        site = Site(node.name, op, "function", "", inputs=tuple(metas),
                    outputs=(tensor_meta(own),) if own is not None else (),
                    attrs={**call.attrs, "called": called})  # fmt: skip
        arguments = list(node.args)
        if called in REVERSED and len(arguments) == 2:
            if isinstance(arguments[0], fx.Node):
                arguments.reverse()
            numbers = {at: value for at, value in enumerate(arguments) if isinstance(value, int | float)}
            site = dataclasses.replace(site, attrs={**site.attrs, "scalars": numbers})
        operands = [self._operand(argument) for argument in arguments]
        found = rule(site, operands)
        return of_integers(found, site.outputs[0].dtype) if found.is_known and site.outputs else _of_type(node)

    def _operand(self, argument: Any) -> Range:
        if isinstance(argument, fx.Node):
            found = self.of(argument)
            return narrowed(_of_type(_root(argument)), passed(argument)) if found is None else found
        return point(float(argument)) if isinstance(argument, int | float) else ANY


_Numbers = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]


def _numbers_of(value: torch.Tensor) -> _Numbers:
    """What two views of a constant share that are the same numbers in the same shape: each layer makes its own."""
    return value.data_ptr(), tuple(value.shape), tuple(value.stride()), value.dtype


def _stays_in_order(low: torch.Tensor, high: torch.Tensor, axis: int, rounding: float) -> bool:
    """Whether the highest value at each place along an axis is no larger than the lowest at the next."""
    count = low.shape[axis]
    for last in (1, count - 1):  # most are out of order at the start
        if not bool((high.narrow(axis, 0, last) <= low.narrow(axis, 1, last) + rounding).all()):
            return False
    return True


def _is_index_from_one(node: fx.Node) -> bool:
    """Whether ``n - 1`` is an index of gather or index_select, which raise for a negative one: n is 1 or more."""
    less = [use for use in _uses(node) if _op(use) == "sub" and use.args[1:] == (1,) and not use.kwargs]
    return any(_op(use) in _PICKS and _root(use.all_input_nodes[0]) is not each for each in less for use in _uses(each))


def _uses(node: fx.Node) -> list[fx.Node]:
    """What reads all of a node, through views and casts."""
    found = []
    for use in node.users:
        whole = (
            (own := _tensor(node)) is not None and (seen := _tensor(use)) is not None and seen.numel() >= own.numel()
        )
        found += _uses(use) if _is_transparent(use) and whole else [use]
    return found


def is_transformed(value: torch.Tensor) -> bool:
    """Whether a tensor is one of ``torch.func.vmap`` or ``grad``, whose numbers are not to be had outside of it."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(value))


def range_of(value: torch.Tensor) -> Range | None:
    """The extremes of a real tensor, infinities left out; ``None`` for one that cannot be read, and for a large one of
    bytes or with infinities."""
    if isinstance(value, FakeTensor) or value.device.type == "meta" or not value.numel():
        return None
    if value.is_complex() or value.layout is not torch.strided or value.is_quantized or is_transformed(value):
        return None
    large = value.numel() > _LARGE
    if large and value.itemsize == 1:
        return None
    with torch._C.DisableTorchFunction(), torch.no_grad():
        numbers = value.detach() if large or value.dtype in _PLAIN else value.detach().double()
        low, high = (float(end) for end in torch.aminmax(numbers))
        if math.isfinite(low) and math.isfinite(high):
            return Range(low, high)
        if large:
            return None
        finite = numbers[numbers.isfinite()].double()
        return Range(float(finite.min()), float(finite.max())) if finite.numel() else None


def _of_type(node: fx.Node) -> Range:
    value = _tensor(node)
    if value is None:
        return ANY
    return {torch.bool: UNIT, torch.uint8: Range(0.0, 255.0), torch.int8: Range(-128.0, 127.0)}.get(value.dtype, ANY)


def _tensor(node: fx.Node) -> torch.Tensor | None:
    value = node.meta.get("val")
    if isinstance(value, tuple | list) and value:
        value = value[0]
    return value if isinstance(value, torch.Tensor) else None


def _root(node: fx.Node) -> fx.Node:
    while _is_transparent(node) and node.all_input_nodes:
        node = next(iter(picked(node)), node.all_input_nodes[0])
    return node


def _is_transparent(node: fx.Node) -> bool:
    op = _op(node)
    return op == "getitem" or (bool(op) and op_named(op).family in _TRANSPARENT)


def _op(node: fx.Node) -> str:
    return str(node.meta.get("amptune_op") or "")
