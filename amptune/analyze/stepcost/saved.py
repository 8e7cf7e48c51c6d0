"""What autograd keeps of a step until its backward, site by site.

A storage has a name: a tensor that several ops save counts once, a copy that autocast makes for each consumer, a copy
of a weight once a step. Further calls of a shared module keep what they make themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from amptune.analyze.stepcost.attention import FP32_BYTES, score_bytes, writes_scores
from amptune.analyze.stepcost.fusion import is_fused
from amptune.analyze.stepcost.kernels import (
    Setting,
    call_share,
    input_bytes,
    needs_backward,
    of_one_call,
    softmax_in_half,
)
from amptune.analyze.stepcost.moves import cost_of
from amptune.analyze.stepcost.multihead import copies_operands, kept
from amptune.analyze.stepcost.strides import kept_copies
from amptune.core.autocast import SiteDtypes
from amptune.core.graph import DTYPE_BYTES, PrecisionGraph, Site
from amptune.core.operands import input_of
from amptune.core.ops import Family, op_named
from amptune.core.recipes import converts_to_fp8

Stored = tuple[str, int]
"""Name and bytes of a storage; one that is a site's output has that site's id."""
_PADDED_BY_ITSELF = ("reflect", "replicate")
"""Ways of padding whose backward asks for the operand."""
_BY_PLACE = ("max", "min", "median")
"""Ops that keep where the numbers were that they picked along an axis, and not what they picked from."""
_SUMS_WITH = ("addmm", "baddbmm", "addbmm", "addmv", "addr")
"""Products that add a first operand, which nothing is multiplied with."""


class Saved:
    """What the sites of a graph save for their backward under one recipe.

    Args:
        graph: the captured model.
        dtypes: of its sites under the recipe.
        setting: the recipe, and how it runs.
        sources: a site -> where each of its inputs comes from.
        delivered: site id -> bytes of its outputs.
    """

    def __init__(
        self, graph: PrecisionGraph, dtypes: Mapping[str, SiteDtypes], setting: Setting,
        sources: Callable[[Site], tuple[str, ...]], delivered: Mapping[str, int],
    ) -> None:  # fmt: skip
        self.graph = graph
        self.dtypes = dtypes
        self.setting = setting
        self.sources = sources
        self.delivered = delivered

    def of(self, site: Site) -> list[Stored]:
        """What the first call saves, and what the further calls of a shared module save beside it."""
        saved = list(self._saves(site))
        if site.calls > 1 and saved:
            each = sum(size for key, size in saved if key not in self.graph and not key.startswith("weight:"))
            if own := [key for key, _ in saved if key in self.graph]:
                each += sum(self.delivered[key] for key in own if not self._is_one_storage(site, key))
                each += self._made_by_later_calls(site)
            saved.append((f"calls:{site.id}", round((call_share(site) - 1) * each)))
        return saved

    def _made_by_later_calls(self, site: Site) -> int:
        """Bytes of the inputs that come from sites in later calls alone: the state of a loop that starts from zeros."""
        sources, later = self.sources(site), site.attrs.get("later_sources", ())
        sizes = input_bytes(site, self.dtypes[site.id].inputs)
        return sum(
            size for place, size in enumerate(sizes)
            if sources[place] not in self.graph and any(each[place] in self.graph for each in later)
        )  # fmt: skip

    def _is_one_storage(self, site: Site, source: str) -> bool:
        """Whether all calls of a site read the one result of ``source``, or a view of it: the steps of a loop."""
        places = [place for place, each in enumerate(self.sources(site)) if each == source]
        later = site.attrs.get("later_sources", ())
        same = all(sources[place] == source for sources in later for place in places)
        return bool(places) and self.graph[source].calls == 1 and same

    def _saves(self, site: Site) -> Iterator[Stored]:
        """What autograd keeps of the first call."""
        if not needs_backward(site) or (self.setting.fused and is_fused(site)):
            return
        family = op_named(site.op).family
        dtypes = self.dtypes[site.id]
        in_fp8 = bool(self.setting.recipe.fp8) and converts_to_fp8(site)
        for param, dtype in zip(site.params, dtypes.params, strict=True):
            if in_fp8 and len(param.meta.shape) > 1:
                continue  # torchao keeps the parameter itself
            if dtype and param.meta.dtype != dtype and param.meta.is_floating:
                yield f"weight:{param.key or param.name}:{dtype}", param.meta.numel * DTYPE_BYTES.get(dtype, 4)
        if family is Family.ATTENTION and writes_scores(site, dtypes.compute):
            yield from self._scores(site)
            return
        if site.op == "multi_head_attention":
            yield from kept(site, dtypes)
            if not copies_operands(site):
                yield from self._inputs(site)
            return
        if family in (Family.GEMM, Family.CONV, Family.ATTENTION, Family.RNN):
            yield from self._inputs(site, _factors(site) if family is Family.GEMM else None)
            if family in (Family.ATTENTION, Family.RNN):
                yield site.id, 0
            # Fused attention keeps the logarithm of each row's sum of exponentials.
            if family is Family.ATTENTION and (products := of_one_call(site)):
                yield f"sums:{site.id}", FP32_BYTES * products[0].batch * products[0].m
            if family is Family.RNN:
                yield f"reserve:{site.id}", _reserve_bytes(site, dtypes)
            if in_fp8 and self.setting.fused:
                # Both layouts of the FP8 operands are kept beside the BF16 input; in eager mode the input alone.
                yield f"fp8:{site.id}", 2 * sum(t.numel for t in site.inputs) + sum(p.meta.numel for p in site.params)
            return
        yield from self._of_table(site, dtypes)

    def _of_table(self, site: Site, dtypes: SiteDtypes) -> Iterator[Stored]:
        cost = cost_of(site.op)
        if cost is None:
            return
        numel = sum(tensor.numel for tensor in site.outputs)
        if site.op in ("mul", "div"):
            if len(site.inputs) + len(site.params) > 1 or not site.attrs.get("scalars"):
                yield from self._inputs(site, _factors(site))
        elif site.op == "cross_entropy":
            logits = max(input_bytes(site, dtypes.inputs), default=0)
            yield f"log_softmax:{site.id}", logits
            if softmax_in_half(site, dtypes):
                yield f"log_softmax16:{site.id}", logits // 2
        elif site.op in _BY_PLACE and site.attrs.get("dim") is not None:
            yield f"indices:{site.id}", 8 * numel
        elif site.op == "pad" and site.attrs.get("mode", "constant") in _PADDED_BY_ITSELF:
            yield from self._inputs(site)
        elif cost.saves == "source":
            yield from self._inputs(site, [place for place in _last_floating(site) if site.inputs[place].requires_grad])
        elif cost.saves in ("inputs", "both"):
            yield from self._inputs(site)
        if cost.saves in ("output", "both"):
            yield site.id, 0
        if cost.saves == "mask":
            yield f"mask:{site.id}", numel
        if cost.saves == "indices" and "pool" in site.op:
            yield f"indices:{site.id}", 8 * numel
            yield from self._inputs(site)

    def _scores(self, site: Site) -> Iterator[Stored]:
        """Attention by plain products: what the softmax made, what the dropout made of it, query, key and value."""
        scores = score_bytes(site)
        operands = FP32_BYTES * sum(tensor.numel for tensor in site.inputs[:3])
        yield f"scores:{site.id}", scores + operands
        if site.attrs.get("dropout_p"):
            yield f"dropped:{site.id}", scores + scores // FP32_BYTES

    def _inputs(self, site: Site, places: Collection[int] | None = None) -> Iterator[Stored]:
        """The floating operands at the given places, or all of them."""
        dtypes = self.dtypes[site.id]
        cast = {index for index, _, _ in dtypes.casts}
        sizes = input_bytes(site, dtypes.inputs)
        sources, copied = self.sources(site), kept_copies(site, dtypes)
        for index, source in enumerate(sources):
            if not site.inputs[index].is_floating:
                continue
            if places is not None and index not in places:
                continue
            if index in cast:
                yield cast_key(site, index), sizes[index]
            elif index in copied:
                yield f"rows:{site.id}:{index}", sizes[index]
            elif source in self.graph and source in sources[:index] and site.calls < self.graph[source].calls:
                yield f"call:{site.id}:{index}", sizes[index]  # another call made it
            elif source in self.graph:
                yield source, self.delivered[source]


def _reserve_bytes(site: Site, dtypes: SiteDtypes) -> int:
    """What cuDNN keeps of every step of a recurrent layer: its gates before and after their functions."""
    gates = sum(gemm.batch * gemm.m * gemm.n for gemm in of_one_call(site) if gemm.batch > 1)
    return 2 * gates * DTYPE_BYTES.get(dtypes.compute, 4)


def _last_floating(site: Site) -> list[int]:
    return [index for index, tensor in enumerate(site.inputs) if tensor.is_floating][-1:]


def _factors(site: Site) -> list[int]:
    """Operands of a product that its backward asks for: each one that is multiplied with what has a gradient, as frozen
    weights have none; and what is divided by."""
    added = site.op in _SUMS_WITH and len(site.inputs) == 3
    factors = [index for index in range(len(site.inputs)) if not (added and index == 0)]
    trained = any(param.meta.requires_grad and (site.op in ("mul", "div") or len(param.meta.shape) > 1)
                  for param in site.params)  # fmt: skip
    if len(factors) + len(site.params) < 2:
        return factors
    below = input_of(site, 1) if site.op == "div" else None
    return [
        index for index in factors
        if trained or index == below or any(site.inputs[each].requires_grad for each in factors if each != index)
    ]  # fmt: skip


def cast_key(site: Site, index: int) -> str:
    """Name of the copy of an operand that autocast makes."""
    return f"cast:{site.id}:{index}"
