"""What is known of the inputs of a site from the nodes that lie between them and what made them, call by call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import fx

from amptune.analyze.sitefacts.axes import axes_of_view
from amptune.analyze.sitefacts.constants import NodeBounds
from amptune.analyze.sitefacts.dtypes import family, passed, root, walk
from amptune.analyze.sitefacts.puts import puts
from amptune.core.bounds.intervals import ANY, Range
from amptune.core.graph import INPUT, Site
from amptune.core.ops import Family

_MASKING = ("mul", "masked_fill", "where")
_WRITING = ("copy", "index_put")
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
INTEGERS = (torch.int64, torch.int32, torch.int16)
_Told = TypeVar("_Told")


def origins(
    site: Site, calls: Sequence[Sequence[fx.Node]], owners: Mapping[str, str], bounds: NodeBounds
) -> Iterator[tuple[str, Any]]:
    """What is known of inputs that no site makes, and where those of later calls come from."""
    reads = [[node for node in read_by(covered) if not is_own(node, site)] for covered in calls]
    outside, last = reads[0], calls[0][-1]
    known = dict(_known(site, reads, bounds))
    if len(calls) == 1 and outside and (filled := bounds.overwritten(outside[0], last)) is not None:
        known[0] = filled
    if site.op == "scaled_dot_product_attention" and all(
        (mask := mask_of(covered[0])) and bounds.is_causal(mask) for covered in calls
    ):
        yield "mask_causal", True
    if site.op in _MASKING and (
        kept := _alike(reads, lambda node: each if any(each := bounds.axes_kept(node)) else None)
    ):
        yield "kept", kept
    if site.op in ("masked_fill", "where") and (
        triangles := _alike(reads, lambda node: each if any(each := bounds.triangles(node)) else None)
    ):
        yield "triangles", triangles
    if shares := [*_alike(reads, bounds.is_one_hot)]:
        yield "one_hot", shares
    if pairs := [*_alike(reads, bounds.pairs_with_itself)]:
        yield "pairs", pairs
    if known:
        yield "bounds", {index: (found.low, found.high) for index, found in known.items()}
    if len(calls) == 1 and (stored := _as_stored(outside, last, bounds)):
        yield "as_stored", stored
    if batch := _alike(reads, _of_batch):
        yield "batch", batch
    if reckoned := _reckoned(site, outside, owners):
        yield "reckoned", reckoned
    if len(calls) == 1 and (exact := bounds.exact(last)) is not None:
        yield "exact", exact
    if len(calls) == 1 and not site.is_module and (rises := bounds.rises(last)):
        yield "rises", rises
    yield from _on_the_way(site, reads, owners)
    narrowed = {index: dtype for index, node in enumerate(outside) if (dtype := _narrowed(node))}
    if narrowed:
        yield "narrowed", narrowed
    if site.op in _WRITING and len(calls) == 1:
        written = puts(calls[0], {node: index for index, node in enumerate(outside)})
        if written is not None:
            yield "puts", written
    if whole := (*_alike(reads, _is_of_integers),):
        yield "whole", whole
    if any(bounds.is_random(node) for read in reads for node in read):
        yield "random", True
    later = [tuple(_owner(node, owners) for node in read) for read in reads[1:] if len(read) == len(outside)]
    if any(len(read) != len(outside) for read in reads):
        yield "uneven", True
    if any(sources != site.sources for sources in later):
        yield "later_sources", tuple(dict.fromkeys(later))


def _alike(reads: Sequence[Sequence[fx.Node]], told: Callable[[fx.Node], _Told | None]) -> dict[int, _Told]:
    """Index of an input -> what is told of it, where that is the same in all calls."""
    if any(len(read) != len(reads[0]) for read in reads):
        return {}
    found = {index: each for index, node in enumerate(reads[0]) if (each := told(node))}
    return {index: each for index, each in found.items() if all(told(read[index]) == each for read in reads[1:])}


def _on_the_way(site: Site, reads: Sequence[Sequence[fx.Node]], owners: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Views and casts between inputs and what made them, and where those of the calls differ."""
    outside = reads[0]
    alike = [read for read in reads if len(read) == len(outside)]
    views = {
        index: each for index in range(len(outside)) if any(each := _views_of_all([read[index] for read in alike]))
    }
    if views:
        yield "views", {index: (cuts, every) for index, (cuts, every, _) in views.items()}
        yield "turns", {index: others for index, (_, _, others) in views.items()}
        runs = _alike(reads, axes_of_view)
        yield "axes", {index: runs[index] for index in views if index in runs}
    cast = {index: dtypes for index, node in enumerate(outside) if (dtypes := passed(node))}
    if cast:
        yield "passed", cast
    others = {index: ways for index in range(len(outside)) if (ways := _other_ways(site, reads, index, owners))}
    if others:
        yield "passed_too", others
    varied = [
        index
        for index, node in enumerate(outside)
        if index in others
        or len(alike) < len(reads)
        or any(_made_by(read[index], owners) != _made_by(node, owners) for read in alike)
    ]
    if varied:
        yield "varied", tuple(varied)


def _views_of_all(nodes: Sequence[fx.Node]) -> tuple[str, str, str]:
    """As of one call, where all have the same; else those of one after the other."""
    found = [_views(node) for node in nodes]
    if all(each == found[0] for each in found):
        return found[0]
    cuts, every, others = (" & ".join(part) for part in zip(*found, strict=True))
    return cuts if any(each for each, _, _ in found) else "", every, others if any(each for *_, each in found) else ""


def _other_ways(
    site: Site, reads: Sequence[Sequence[fx.Node]], index: int, owners: Mapping[str, str]
) -> tuple[tuple[str, ...], ...]:  # fmt: skip
    """The casts on the way of an input, other than those of the first call: of later calls, and none where the tensor
    was written over after a cast."""
    own = passed(reads[0][index])
    ways = dict.fromkeys(passed(read[index]) for read in reads[1:] if index < len(read))
    if own and site.sources[index : index + 1] != (_owner(reads[0][index], owners),):
        ways[()] = None
    return tuple(way for way in ways if way != own)


def _as_stored(outside: Sequence[fx.Node], reader: fx.Node, bounds: NodeBounds) -> dict[int, tuple[float, float]]:
    found = {index: bounds.as_stored(node, reader) for index, node in enumerate(outside)}
    return {index: (each.low, each.high) for index, each in found.items() if each is not None}


def _of_batch(node: fx.Node) -> str:
    """The tensor of the batch that a node is, through views and casts; empty for another."""
    base = root(node)
    return str(base.target) if base.op == "placeholder" else ""


def _made_by(node: fx.Node, owners: Mapping[str, str]) -> str:
    """The tensor of the batch that a node is, or what made it in the forward and is no site; empty for another."""
    base = root(node)
    return base.name if _is_reckoned(base, owners) else _of_batch(node)


def _reckoned(site: Site, outside: Sequence[fx.Node], owners: Mapping[str, str]) -> dict[int, str]:
    """Index of an input -> the node that made it; not of what a site has since written over."""
    inputs = zip(outside, site.sources, strict=False)
    return {
        index: base.name
        for index, (node, source) in enumerate(inputs)
        if not source and _is_reckoned(base := root(node), owners)
    }


def _is_reckoned(base: fx.Node, owners: Mapping[str, str]) -> bool:
    """Whether the forward makes a tensor by what is no site: arithmetic on integers, a draw, a range of numbers."""
    return base.op not in ("placeholder", "get_attr") and base.name not in owners


def _known(site: Site, reads: Sequence[Sequence[fx.Node]], bounds: NodeBounds) -> Iterator[tuple[int, Range]]:
    """Bounds, over all calls, of inputs that no site makes in the first; of one that is written into those of what it
    was before."""
    later = reads[1:]
    for index, node in enumerate(reads[0]):
        found = bounds.of(node)
        if found is None and not later and site.sources[index : index + 1] == ("",):
            found = bounds.before_writes(node)
        for read in later if found is not None else ():
            own = bounds.of(read[index]) if index < len(read) else None
            found = found.union(own) if found is not None and own is not None else ANY
        if found is not None:
            yield index, found


_CUTS = frozenset({"slice", "select", "split", "chunk", "narrow", "unbind", "diagonal", "as_strided", "getitem"})


def _views(node: fx.Node) -> tuple[str, str, str]:
    """The views between a tensor and what made it, as text: those that pick some of its numbers, all of them, and those
    that pick none."""
    cuts: list[str] = []
    others: list[str] = []
    every = []
    for step in walk(node):
        op = str(step.meta.get("amptune_op"))
        if family(step) is Family.VIEW and op not in ("detach", "alias"):
            text = f"{op}{step.args[1:]}{dict(step.kwargs)}"
            every.append(text)
            (cuts if op in _CUTS else others).append(text)
    return " ".join(cuts), " ".join(every), " ".join(others)


def _is_of_integers(node: fx.Node) -> bool:
    """Whether a tensor holds integers, be they cast to another dtype on the way."""
    values = (step.meta.get("val") for step in walk(node))
    return any(isinstance(each, torch.Tensor) and each.dtype in INTEGERS for each in values)


def _narrowed(node: fx.Node) -> str:
    """The 8-bit format that the user's code casts a tensor to on the way, also where it is cast back."""
    for step in walk(node):
        value = step.meta.get("val")
        if isinstance(value, torch.Tensor) and value.dtype in _FP8:
            return str(value.dtype).removeprefix("torch.")
    return ""


def _owner(node: fx.Node, owners: Mapping[str, str]) -> str:
    base = root(node)
    return INPUT if base.op == "placeholder" else owners.get(base.name, str(base.meta.get("amptune_stored") or ""))


def read_by(covered: Sequence[fx.Node]) -> list[fx.Node]:
    """Nodes that the call reads from outside, parameters included, in order."""
    own = set(covered)
    return list(dict.fromkeys(argument for node in covered for argument in node.all_input_nodes if argument not in own))


def is_own(node: fx.Node, site: Site) -> bool:
    """Whether a node is a parameter of the site, or the state of its layer."""
    stored = root(node).meta.get("amptune_stored")
    if stored is None:
        return False
    if stored in {param.name for param in site.params}:
        return True
    return site.is_module and str(stored).startswith(f"{site.module}.")


def mask_of(node: fx.Node) -> fx.Node | None:
    """The mask of a call of scaled_dot_product_attention."""
    found = node.kwargs.get("attn_mask", node.args[3] if len(node.args) > 3 else None)
    return found if isinstance(found, fx.Node) else None
