"""Which site each tensor of a captured graph comes from, through views, casts and in-place writes."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import fx

from amptune.capture.parameters import ParameterNames, tensor_meta
from amptune.capture.shared import UNSEEN, SharedMemory, changes_numbers
from amptune.core.graph import INPUT, OUTPUT, TensorMeta
from amptune.core.ops import Family, op_named

_TRANSPARENT = {Family.VIEW, Family.CAST, Family.CREATE, Family.RANDOM}
_CONSTANT = {Family.CREATE, Family.RANDOM}
_READS_ALL = {"broadcast_tensors", "meshgrid"}
_PSEUDO_OPS = {"getitem", "get_attr"}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a tensor comes from: a site, the batch, a stored tensor of the model."""

    kind: Literal["site", "input", "parameter", "buffer"]
    name: str


@dataclasses.dataclass(frozen=True)
class Operand:
    """A tensor that a call reads from outside, as it arrives; ``cast`` is the dtype that the user's code gives it.

    ``written`` are the sites that wrote into parts of it, or into all of it through another tensor, since it was made;
    an empty name for a writer that is no site. ``is_constant``: beside those it holds numbers that no site made.
    """

    node: fx.Node
    meta: TensorMeta
    origins: tuple[Origin, ...]
    cast: str | None = None
    written: tuple[str, ...] = ()
    is_constant: bool = False

    @property
    def parameter(self) -> str | None:
        """The parameter that it is, seen through views and casts; None for what is computed."""
        names = {origin.name for origin in self.origins if origin.kind == "parameter"}
        return names.pop() if len(names) == 1 and len(self.origins) == 1 else None

    @property
    def is_stored(self) -> bool:
        """Whether it is a buffer of the model."""
        return bool(self.origins) and all(origin.kind == "buffer" for origin in self.origins)

    @property
    def source(self) -> str:
        """Site id, INPUT, name of a buffer, or empty for a constant: the first where it has several."""
        return self.origins[0].name if self.origins and not self.is_constant else ""


class Flow:
    """Follows tensors from node to node.

    Args:
        names: the model's parameters.
        site_of: node -> id of the site that it belongs to; what is not in it is transparent.
        group_of: node -> number of the call of the site that it belongs to.
    """

    def __init__(self, names: ParameterNames, site_of: Mapping[fx.Node, str], group_of: Mapping[fx.Node, int]) -> None:
        self.names = names
        self.site_of = site_of
        self.group_of = group_of
        self.edges: list[tuple[str, str, TensorMeta]] = []
        self.operands: dict[int, list[Operand]] = {}
        self._origins: dict[fx.Node, tuple[Origin, ...]] = {}
        self._casts: dict[fx.Node, str] = {}
        self._seen: set[tuple[int, fx.Node]] = set()
        self._shared = SharedMemory()

    def read(self, graph: fx.Graph) -> None:
        """Walk the graph in order, filling ``edges`` and, by number of call, ``operands``."""
        for node in graph.nodes:
            if node in self.site_of:
                self._read_operands(node)
            made = node in self.site_of and self._is_made_inside(node)
            self._origins[node] = (Origin("site", self.site_of[node]),) if made else self._through(node)
            self._shared.made(node, is_site=made, whole=picked(node))
            if node.op == "output":
                self._read_outputs(node)
            for written in node.meta.get("amptune_writes", ()):
                self._write(node, written)

    def _is_made_inside(self, node: fx.Node) -> bool:
        """Whether a node of a site holds numbers of it, rather than being a view of what the site reads, as those of
        ``broadcast_tensors`` inside of a loss."""
        group, call = self.group_of.get(node), node.meta.get("amptune_call")
        if call is None or call.leaf is not None or call.custom is not None:
            return True
        while self.group_of.get(node) == group:
            if op_of(node) not in _PSEUDO_OPS and op_named(op_of(node)).family is not Family.VIEW:
                return True
            above = next(iter(picked(node) or tensor_arguments(node)), None)
            if above is None:
                return True
            node = above
        return False

    def _through(self, node: fx.Node) -> tuple[Origin, ...]:
        stored = node.meta.get("amptune_stored")
        if stored is not None:
            return (Origin("parameter" if stored in self.names else "buffer", stored),)
        if node.op == "placeholder":
            return (Origin("input", INPUT),)
        if node.op == "get_attr" or op_named(op_of(node)).family in _CONSTANT:
            return ()
        read = picked(node) or list(tensor_arguments(node))
        if _keeps_first_alone(node):
            read = read[:1]
            self._note_cast(node, read)
        if read and op_of(node) == "as_strided":
            read = [self._shared.maker(read[0])]
        return tuple(dict.fromkeys(origin for argument in read for origin in self._origins.get(argument, ())))

    def _note_cast(self, node: fx.Node, read: list[fx.Node]) -> None:
        """A view of something cast is cast, and the last cast counts."""
        call = node.meta.get("amptune_call")
        named = call.attrs.get("dtype") if call is not None and op_named(call.op).family is Family.CAST else None
        cast = named or (self._casts.get(read[0]) if read else None)
        if cast is not None:
            self._casts[node] = cast

    def _read_operands(self, node: fx.Node) -> None:
        group, site = self.group_of[node], self.site_of[node]
        for argument in tensor_arguments(node):
            if self.group_of.get(argument) == group or (group, argument) in self._seen:
                continue
            self._seen.add((group, argument))
            origins, written = self._held(argument), self._shared.mixed(argument)
            for meta in metas_of(argument)[:1]:
                constant = not self._origins.get(argument) and not self._shared.is_overwritten(argument)
                operand = Operand(argument, meta, origins, self._casts.get(argument), written, constant)
                self.operands.setdefault(group, []).append(operand)
                self._add_edges(origins, site, meta)

    def _read_outputs(self, node: fx.Node) -> None:
        for argument in tensor_arguments(node):
            for meta in metas_of(argument)[:1]:
                self._add_edges(self._held(argument), OUTPUT, meta)

    def _held(self, node: fx.Node) -> tuple[Origin, ...]:
        """Where what a tensor holds by now comes from: what made it, and what was written into it through others."""
        written = tuple(Origin("site", name) for name in self._shared.mixed(node) if name != UNSEEN)
        made = () if self._shared.is_overwritten(node) else self._origins.get(node, ())
        return tuple(dict.fromkeys((*made, *written)))

    def _add_edges(self, origins: tuple[Origin, ...], target: str, meta: TensorMeta) -> None:
        for origin in origins:
            if origin.kind in ("site", "input"):
                self.edges.append((origin.name, target, meta))

    def _write(self, node: fx.Node, written: fx.Node) -> None:
        """After a write, readers of the tensor, and of what it shares memory with, depend on the writer too."""
        new = self._origins[node]
        self._origins[written] = tuple(dict.fromkeys((*new, *self._origins.get(written, ()))))
        self._train(node, written)
        if changes_numbers(node):
            self._shared.written(written, node, self.site_of.get(node, UNSEEN))

    @staticmethod
    def _train(node: fx.Node, written: fx.Node) -> None:
        """A tensor that something with a gradient is written to has one from there on, and so has what it is a view
        of."""
        if not node.meta.get("amptune_trained"):
            return
        written.meta["amptune_trained"] = True
        while op_named(op_of(written)).family is Family.VIEW and written.all_input_nodes:
            written = written.all_input_nodes[0]
            written.meta["amptune_trained"] = True


def op_of(node: fx.Node) -> str:
    """The op-table name of a node, empty for placeholders and outputs."""
    return str(node.meta.get("amptune_op", ""))


def is_transparent_op(op: str) -> bool:
    """Whether an op is a view, a cast or a creation, which become part of an edge."""
    return op in _PSEUDO_OPS or op_named(op).family in _TRANSPARENT


def is_transparent(node: fx.Node) -> bool:
    """Whether a node computes nothing in a precision: a view, a cast, a constant, or arithmetic on integers alone."""
    if is_transparent_op(op_of(node)):
        return True
    metas = [meta for argument in (node, *tensor_arguments(node)) for meta in metas_of(argument)]
    return not any(_can_train(meta) for meta in metas)


def tensor_arguments(node: fx.Node) -> Iterator[fx.Node]:
    """Nodes that a node reads, in order of its arguments, each once."""
    return iter(node.all_input_nodes)


def metas_of(node: fx.Node) -> list[TensorMeta]:
    """The tensors that a node gives. torch.export keeps values without their ``requires_grad``, so it is kept apart."""
    metas = list(_metas(node.meta.get("val")))
    trained = node.meta.get("amptune_trained")
    if trained is None:
        return metas
    return [dataclasses.replace(meta, requires_grad=trained and _can_train(meta)) for meta in metas]


def _can_train(meta: TensorMeta) -> bool:
    return meta.is_floating or meta.dtype.startswith("complex")


def _metas(value: Any) -> Iterator[TensorMeta]:
    if isinstance(value, torch.Tensor):
        yield tensor_meta(value)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _metas(item)


def has_channels_last(value: Any) -> bool | None:
    """Whether an image or volume is laid out with its channels innermost.

    ``None`` where its strides fit both layouts, and for what has no such layout.
    """
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(value.dim()) if _is_strided(value) else None
    if layout is None:
        return None
    last, first = value.is_contiguous(memory_format=layout), value.is_contiguous()
    return None if last and first else last


def _is_strided(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout is torch.strided


def picked(node: fx.Node) -> list[fx.Node]:
    """What the one result holds that ``node`` picks from an op that gives each of its tensors back as a view."""
    whole, index = (*node.args, None, None)[:2]
    if node.target is not operator.getitem or not isinstance(whole, fx.Node) or op_of(whole) not in _READS_ALL:
        return []
    tensors = [each for each in torch.utils._pytree.tree_leaves(whole.args) if isinstance(each, fx.Node)]
    return [tensors[index]] if isinstance(index, int) and index < len(tensors) else []


def _keeps_first_alone(node: fx.Node) -> bool:
    """``x.expand_as(y)`` and ``x.type_as(y)`` carry x alone; integer arithmetic carries all it reads."""
    op = op_of(node)
    return op_named(op).family in (Family.VIEW, Family.CAST) and op not in _READS_ALL
