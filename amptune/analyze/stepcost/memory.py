"""Peak memory of a training step, by walking the graph forward and backward with what autograd keeps.

Counted: parameters, gradients and AdamW's two moments; what each op saves for its backward (a tensor that several ops
save counts once, a cast copy for each consumer); intermediate tensors until their last reader; gradients of
activations until they are used; 16-bit copies of weights; what cuDNN transposes or has in tiles; the batch and cuBLAS's
workspaces. Not counted: other workspaces (those of Fourier transforms and of FP32's convolutions by them),
fragmentation, buffers. The peak is that of ``torch.cuda.max_memory_allocated``.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

from amptune.analyze.stepcost.attended import attention_behind
from amptune.analyze.stepcost.attention import score_bytes, writes_scores
from amptune.analyze.stepcost.convolutions import workspace
from amptune.analyze.stepcost.fusion import Fusion, is_fused
from amptune.analyze.stepcost.kernels import (
    Setting,
    input_bytes,
    needs_backward,
    output_bytes,
    softmax_in_half,
)
from amptune.analyze.stepcost.lifetimes import Gradient, entered_by, frame_ends
from amptune.analyze.stepcost.saved import Saved, cast_key
from amptune.core.autocast import SiteDtypes, sources_of
from amptune.core.graph import DTYPE_BYTES, LOSS, OUTPUT, Param, PrecisionGraph, Site
from amptune.core.ops import Family, op_named

WORKSPACE = 64 * 2**20
"""cuBLAS has 32 MiB for each handle on Hopper, and the thread of the backward has a handle of its own
(aten/src/ATen/cuda/CublasHandlePool.cpp); before Hopper it has 8 MiB."""
ADAM_MOMENTS = 2
_JOINS = ("cat", "stack")
"""Ops whose gradient is handed back in parts that are views of it."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one training step, by what they hold."""

    params: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def step_memory(graph: PrecisionGraph, dtypes: Mapping[str, SiteDtypes], setting: Setting) -> Memory:
    """The memory of a step under one recipe."""
    params = _unique_params(graph)
    stored = sum(_stored_bytes(param, setting) for param in params)
    trained = [param for param in params if param.meta.requires_grad] if setting.train else []
    gradients = sum(_stored_bytes(param, setting) for param in trained)
    walk = _Walk(graph, dtypes, setting)
    forward, kept = walk.forward()
    base = stored + ADAM_MOMENTS * gradients + WORKSPACE + _batch_bytes(graph)
    if not setting.train:
        return Memory(stored, 0, 0, kept, stored + WORKSPACE + forward)
    peak = base + max(forward, walk.backward(), gradients)
    return Memory(stored, gradients, ADAM_MOMENTS * gradients, kept, peak)


def _unique_params(graph: PrecisionGraph) -> list[Param]:
    """Each once; one that any site trains is trained."""
    found: dict[str, Param] = {}
    for param in (param for site in graph for param in site.params):
        key = param.key or param.name
        if key not in found or param.meta.requires_grad:
            found[key] = param
    return list(found.values())


def _batch_bytes(graph: PrecisionGraph) -> int:
    """The batch, as far as a site reads a tensor of it."""
    found: dict[str, int] = {}
    for site in graph:
        for index, name in (site.attrs.get("batch") or {}).items():
            found[name] = max(found.get(name, 0), site.inputs[index].nbytes)
    return sum(found.values())


def _stored_bytes(param: Param, setting: Setting) -> int:
    half = setting.recipe.params
    item = half.bytes if half is not None and param.meta.dtype == "float32" else param.meta.itemsize
    return param.meta.numel * item


def _uncopied(graph: PrecisionGraph, dtypes: Mapping[str, SiteDtypes]) -> dict[str, str]:
    """Id of a site that returns what it is given -> id of what made that."""
    found = {site.id: attention_behind(graph, site, dtypes) for site in graph if site.op == "contiguous"}
    return {name: source for name, source in found.items() if source}


class _Walk:
    """One forward and one backward over the sites, keeping count of what is alive."""

    def __init__(self, graph: PrecisionGraph, dtypes: Mapping[str, SiteDtypes], setting: Setting) -> None:
        self.graph = graph
        self.dtypes = dtypes
        self.setting = setting
        self._fusion = Fusion(graph, dtypes) if setting.fused else None
        self._same = {} if setting.fused else _uncopied(graph, dtypes)
        self.order = [site for site in graph if site.id not in self._same]
        self._delivered = {site.id: self._size(site) for site in self.order}
        saved = Saved(graph, dtypes, setting, self._sources, self._delivered)
        self._saved = {site.id: saved.of(site) if setting.train else [] for site in self.order}
        self._holders: collections.Counter[str] = collections.Counter()
        self._sizes: dict[str, int] = {}
        held = self.order if setting.holds_output else ()
        self._kept_by_caller = {site.id for site in held if self._is_result(site)}

    def _sources(self, site: Site) -> tuple[str, ...]:
        """Where each input comes from, past sites that return what they are given."""
        return tuple(self._same.get(source, source) for source in sources_of(self.graph, site))

    def _size(self, site: Site) -> int:
        """Bytes that the site's outputs take; a compiler writes only what another kernel reads."""
        if self._fusion is not None and is_fused(site):
            return self._fusion.bytes_written(site)
        return sum(output_bytes(site, self.dtypes[site.id]))

    def _is_result(self, site: Site) -> bool:
        """Whether the caller holds the output through the backward: what the loss reads, and the loss."""
        read_by_loss = any(each.module == LOSS for each in self.graph.consumers(site.id)) and site.module != LOSS
        return read_by_loss or OUTPUT in self.graph.graph.successors(site.id)

    def forward(self) -> tuple[int, int]:
        """Peak of the forward, and what is left for the backward (activations), in bytes."""
        last_reader = self._last_readers()
        alive, peak = 0, 0
        waiting: dict[int, list[str]] = collections.defaultdict(list)
        for position, site in enumerate(self.order):
            alive += self._delivered[site.id] + self._hold(site)
            peak = max(peak, alive + self._scratch(site))
            waiting[last_reader.get(site.id, position)].append(site.id)
            for name in waiting.pop(position, ()):
                if name not in self._kept_by_caller and not self._holders[name]:
                    alive -= self._delivered[name]
        self._alive = alive
        return peak, alive

    def _last_readers(self) -> dict[str, int]:
        """Site id -> position up to which its output is referred to: by what reads it, and by the caller of a module
        that it is handed to, whose argument it is until that module returns."""
        last: dict[str, int] = {}
        ends = frame_ends(self.order)
        for position, site in enumerate(self.order):
            for source in self._sources(site):
                last[source] = max(last.get(source, 0), position)
                if source in self.graph and (entered := entered_by(self.graph[source], site)):
                    last[source] = max(last[source], ends[position][entered])
        return last

    def _hold(self, site: Site) -> int:
        """Register what the site saves; returns the bytes that are new beside the outputs themselves."""
        new = 0
        for key, size in self._saved[site.id]:
            self._holders[key] += 1
            if self._holders[key] == 1 and key not in self.graph:
                new += size
                self._sizes[key] = size
        return new

    def _scratch(self, site: Site) -> int:
        """Copies that live only while the op runs: cast inputs that nobody saves."""
        if self.setting.fused or softmax_in_half(site, self.dtypes[site.id]):
            return 0
        casts = {index for index, _, _ in self.dtypes[site.id].casts}
        sizes = input_bytes(site, self.dtypes[site.id].inputs)
        if op_named(site.op).family is Family.ATTENTION and writes_scores(site, self.dtypes[site.id].compute):
            return sum(sizes[index] for index in casts) + 2 * score_bytes(site)
        saved = {key for key, _ in self._saved[site.id]}
        copies = sum(sizes[index] for index in casts if cast_key(site, index) not in saved)
        return copies + self._workspace(site, backward=False)

    def backward(self) -> int:
        """Peak of the backward in bytes, gradients of parameters included."""
        alive, peak = self._alive, self._alive
        gradients: dict[str, Gradient] = {}
        seen: set[str] = set()
        for site in reversed(self.order):
            if not needs_backward(site):
                alive -= self._release(site)
                continue
            opened, arriving = self._open_gradients(site, gradients, seen)
            alive += opened
            peak = max(peak, alive + max(self._backward_scratch(site), arriving))
            alive -= self._release(site)
            if (own := gradients.pop(site.id, None)) is not None:
                alive -= own.let_go()
        return peak

    def _open_gradients(self, site: Site, gradients: dict[str, Gradient], seen: set[str]) -> tuple[int, int]:
        """Gradients that the site's backward allocates, of its inputs once and of its parameters for good; and those
        that are added to one that another reader has handed back, and gone then."""
        opened = arriving = 0
        for index, (tensor, source) in enumerate(zip(site.inputs, self._sources(site), strict=True)):
            if not tensor.requires_grad or source not in self.graph:
                continue
            handed_on = gradients.get(site.id) if self._hands_on(site, index) else None
            if source in gradients:
                arriving += 0 if handed_on else self._delivered[source]
            elif handed_on:
                gradients[source] = handed_on.shared()
            else:
                gradients[source] = Gradient(self._delivered[source])
                opened += self._delivered[source]
        for param in site.params:
            key = param.key or param.name
            if param.meta.requires_grad and key not in seen:
                seen.add(key)
                opened += _stored_bytes(param, self.setting)
        return opened, arriving

    def _hands_on(self, site: Site, index: int) -> bool:
        """Whether an operand's gradient is that of the result itself, or a part of it: of a sum, or of what was put
        together."""
        dtypes = self.dtypes[site.id]
        if self.setting.fused or site.calls > 1 or dtypes.given[index] not in dtypes.outputs:
            return False
        if site.op in _JOINS:
            return True
        numel = site.outputs[0].numel if site.outputs else 0
        return (site.op == "add" or (site.op == "sub" and index == 0)) and site.inputs[index].numel == numel

    def _backward_scratch(self, site: Site) -> int:
        """What a backward holds while it runs: a cast gradient, and for a loss one more tensor of the logits' size."""
        if self.setting.fused:
            return 0
        if op_named(site.op).family is Family.ATTENTION and writes_scores(site, self.dtypes[site.id].compute):
            return 2 * score_bytes(site)
        inputs = input_bytes(site, self.dtypes[site.id].inputs)
        casts = sum(inputs[index] for index, _, _ in self.dtypes[site.id].casts if site.inputs[index].requires_grad)
        if site.op == "cross_entropy":
            # The gradients of log_softmax's output and input are alive together; in 16 bits the loss's copy goes first.
            alive = 1 if softmax_in_half(site, self.dtypes[site.id]) else 2
            return alive * max(inputs, default=0) - sum(self._delivered.get(s, 0) for s in self._sources(site))
        if site.op in ("mul", "div"):
            casts += self._unreduced(site)
        weights = sum(
            param.meta.numel * DTYPE_BYTES[dtype]
            for param, dtype in zip(site.params, self.dtypes[site.id].params, strict=True)
            if dtype != param.meta.dtype and dtype in DTYPE_BYTES
        )
        return casts + weights + self._workspace(site, backward=True)

    def _workspace(self, site: Site, *, backward: bool) -> int:
        if op_named(site.op).family is not Family.CONV:
            return 0
        return workspace(site, self.dtypes[site.id], self.setting, backward=backward)

    def _unreduced(self, site: Site) -> int:
        """Gradients of operands that were broadcast or widened, whole and wide until all of the op's are there."""
        dtypes = self.dtypes[site.id]
        item = DTYPE_BYTES.get(dtypes.outputs[0], 4) if dtypes.outputs else 4
        numel = site.outputs[0].numel if site.outputs else 0
        stored = [(param.meta, dtype) for param, dtype in zip(site.params, dtypes.params, strict=True)]
        operands = [*zip(site.inputs, dtypes.inputs, strict=True), *stored]
        return sum(
            numel * item
            for tensor, dtype in operands
            if tensor.requires_grad and (tensor.numel < numel or DTYPE_BYTES.get(dtype, 4) < item)
        )

    def _release(self, site: Site) -> int:
        freed = 0
        for key, _ in self._saved[site.id]:
            self._holders[key] -= 1
            if not self._holders[key]:
                freed += self._sizes.get(key, 0) if key not in self.graph else self._held_output(key)
        return freed

    def _held_output(self, name: str) -> int:
        return 0 if name in self._kept_by_caller else self._delivered[name]
