"""Which dtype every site really computes in under a recipe, by torch's own autocast rules, without running anything.

Assumptions: parameters and buffers keep the dtype they were captured with (the recipe's, where it casts the model as a
whole); the loss runs inside the autocast region; a cast in the user's code that the capture names (``attrs["casts"]``)
keeps its target. Zero-dimensional tensors do not take part in promotion. What
becomes of a dtype that is not known is not known either, unless it meets FP32, and no rule speaks of it.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from amptune.core.graph import INPUT, PrecisionGraph, Site, TensorMeta
from amptune.core.ops import Autocast, Family, Op, op_named
from amptune.core.recipes import Recipe

DeviceType = Literal["cuda", "cpu"]
HALF = ("float16", "bfloat16")
UNKNOWN = ""
"""Stands for a dtype that the capture cannot tell, such as that of ``x.to(y.dtype)``."""


@dataclasses.dataclass(frozen=True)
class SiteDtypes:
    """The dtypes at one site, by torch's names.

    Attributes:
        given: its inputs as their producers deliver them, in the order of ``Site.inputs``.
        inputs: the same as the arithmetic sees them, after autocast's casts.
        params: its parameters as the arithmetic sees them.
        outputs: what it delivers, in the order of ``Site.outputs``.
        raises: why torch would refuse to run it; empty when it runs.
        wide: the widest floating dtype of the operands that have dimensions; empty where none has.
    """

    given: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    raises: str = ""
    wide: str = ""

    @property
    def compute(self) -> str:
        """The dtype of the arithmetic: the widest floating operand, or the result's where there is none."""
        return self.wide or promoted(self.inputs + self.params) or promoted(self.outputs)

    @property
    def in_half(self) -> bool:
        """Whether both its arithmetic and its result are in 16 bits."""
        return self.compute in HALF and any(dtype in HALF for dtype in self.outputs)

    @property
    def casts(self) -> tuple[tuple[int, str, str], ...]:
        """Casts that autocast inserts: (index of the input, from, to)."""
        pairs = enumerate(zip(self.given, self.inputs, strict=True))
        return tuple((index, before, after) for index, (before, after) in pairs if before != after)


_WIDTH = {"float64": 4, "float32": 3, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}


COMPLEX_HALF = "complex32"
"""Two FP16 numbers: what a Fourier transform makes of FP16."""
_COMPLEX = {"float16": COMPLEX_HALF, "bfloat16": "complex64", "float32": "complex64", "float64": "complex128"}
_REAL = {COMPLEX_HALF: "float16", "complex64": "float32", "complex128": "float64"}


def promoted(dtypes: Sequence[str]) -> str:
    """The floating dtype that torch promotes ``dtypes`` to; empty when none of them is floating."""
    floating = {dtype for dtype in dtypes if dtype in _WIDTH}
    if not floating:
        return ""
    if set(HALF) <= floating and max(_WIDTH[dtype] for dtype in floating) == 2:
        return "float32"
    return max(sorted(floating), key=lambda dtype: _WIDTH[dtype])


def realise(graph: PrecisionGraph, recipe: Recipe, device: DeviceType = "cuda") -> dict[str, SiteDtypes]:
    """Site id -> the dtypes it has when the model runs under ``recipe`` on ``device``."""
    result: dict[str, SiteDtypes] = {}
    for site in graph:
        given = _given(graph, site, result, recipe)
        result[site.id] = _site_dtypes(site, given, recipe, device)
    return result


def sources_of(graph: PrecisionGraph, site: Site) -> tuple[str, ...]:
    """Where each of the site's inputs comes from; matched by shape and dtype where the capture does not say."""
    if len(site.sources) == len(site.inputs):
        return site.sources
    waiting: dict[tuple[tuple[int, ...], str], collections.deque[str]] = collections.defaultdict(collections.deque)
    for producer in graph.graph.predecessors(site.id):
        for tensor in graph.tensors(producer, site.id):
            waiting[tensor.shape, tensor.dtype].append(producer)
    return tuple(
        queue.popleft() if (queue := waiting.get((tensor.shape, tensor.dtype))) else "" for tensor in site.inputs
    )


def _given(graph: PrecisionGraph, site: Site, known: Mapping[str, SiteDtypes], recipe: Recipe) -> tuple[str, ...]:
    dtypes = []
    casts, like = site.attrs.get("casts") or {}, site.attrs.get("like") or {}
    for index, (tensor, source) in enumerate(zip(site.inputs, sources_of(graph, site), strict=True)):
        template = like.get(index)
        if index in casts or not (tensor.is_floating or tensor.dtype in _REAL):
            dtypes.append(casts.get(index, tensor.dtype))
        elif template == INPUT:
            dtypes.append(_stored(tensor, recipe))
        elif template is not None:
            dtypes.append(promoted(known[template].outputs) if template in known else UNKNOWN)
        elif source in known:
            dtypes.append(_delivered(graph[source], known[source], tensor))
        else:
            dtypes.append(_stored(tensor, recipe) if source or recipe.params else tensor.dtype)
    return tuple(dtypes)


def _delivered(producer: Site, dtypes: SiteDtypes, tensor: TensorMeta) -> str:
    """The dtype of that output of ``producer`` which ``tensor`` is."""
    for output, dtype in zip(producer.outputs, dtypes.outputs, strict=True):
        if output.shape == tensor.shape and output.dtype == tensor.dtype:
            return dtype
    wide = [dtype for dtype in dtypes.outputs if dtype in _REAL]
    if len(wide) == 1 and not promoted(dtypes.outputs):
        return _REAL[wide[0]] if tensor.is_floating else wide[0]  # a real or a complex view of a complex result
    if not producer.outputs and dtypes.given:
        return dtypes.given[0]  # ``x[i] = y`` returns nothing: what is read later is x, written
    return promoted(dtypes.outputs) or (UNKNOWN if UNKNOWN in dtypes.outputs else tensor.dtype)


def _stored(tensor: TensorMeta, recipe: Recipe) -> str:
    """The dtype of a parameter, a buffer or an input of the model under a recipe that may cast the whole model."""
    if recipe.params is not None and tensor.dtype == "float32":
        return recipe.params.torch_name
    return tensor.dtype


def _site_dtypes(site: Site, given: tuple[str, ...], recipe: Recipe, device: DeviceType) -> SiteDtypes:
    op = op_named(site.op)
    half = _region(site, recipe)
    policy = _policy(site, op, device) if half else Autocast.FOLLOW
    named = site.attrs.get("param_casts") or {}
    params = tuple(named.get(param.name, _stored(param.meta, recipe)) for param in site.params)
    target = _cast_target(policy, half, given + params)
    if half and device == "cuda" and "cast_inputs" in site.attrs:
        target = str(site.attrs["cast_inputs"])  # custom_fwd casts them, and leaves the region
    inputs, raises = given, ""
    if target:
        inputs = tuple(_cast(dtype, target) for dtype in given)
        params = tuple(_cast(dtype, target) for dtype in params)
    if policy is Autocast.ERROR:
        raises = f"{site.op} raises under CUDA autocast"
    elif op.same_dtype and not _only_multiplies(site) and (mixed := _mixed(site, inputs, params)):
        raises = f"{_WRITTEN.get(site.op, site.op)} raises on operands of different dtypes ({' and '.join(mixed)})"
    outputs = tuple(_output(site, op, policy, half, tensor, inputs, params) for tensor in site.outputs)
    tensors = [*site.inputs, *(param.meta for param in site.params)]
    wide = promoted([each for meta, each in zip(tensors, (*inputs, *params), strict=True) if meta.shape])
    return SiteDtypes(given, inputs, params, outputs, raises, wide)


_WRITTEN = {"index_put": "x[index] = y"}


def _policy(site: Site, op: Op, device: DeviceType) -> Autocast:
    if "lowers" in site.attrs and "cast_inputs" not in site.attrs:
        return Autocast.LOWER  # a function of the user's own that ends in a product
    if device == "cuda":
        # Autocast promotes the operands of index_put, not of ``x[mask] = y``, which writes in place.
        return Autocast.FOLLOW if op.cuda is Autocast.PROMOTE and site.attrs.get("in_place") else op.cuda
    return Autocast.FOLLOW if _only_multiplies(site) else op.cpu


def _only_multiplies(site: Site) -> bool:
    """Whether an einsum sums nothing: it ends in mul or in a view instead of bmm, which is what the CPU casts."""
    return site.op == "einsum" and "equation" in site.attrs and all(gemm.k == 1 for gemm in site.gemms)


def _region(site: Site, recipe: Recipe) -> str:
    """The dtype of the autocast region that the site runs in, the model's own regions first; empty outside any."""
    own = site.attrs.get("autocast")
    if own is False:
        return ""
    if isinstance(own, str):
        return own
    return recipe.autocast.torch_name if recipe.autocast else ""


def _cast_target(policy: Autocast, half: str, dtypes: Sequence[str]) -> str:
    """What autocast casts floating operands to; empty for no cast."""
    if policy is Autocast.LOWER:
        return half
    if policy in (Autocast.FP32, Autocast.FP32_OUT):
        return "float32"
    if policy is Autocast.PROMOTE:
        return _joined(dtypes)
    return ""


def _cast(dtype: str, target: str) -> str:
    """Autocast leaves float64 and what is not floating alone."""
    return target if dtype in ("float32", *HALF) else dtype


def _mixed(site: Site, inputs: Sequence[str], params: Sequence[str]) -> list[str]:
    tensors = [dtype for tensor, dtype in zip(site.inputs, inputs, strict=True) if tensor.shape or len(inputs) == 1]
    return sorted(floating) if len(floating := {d for d in (*tensors, *params) if d in _WIDTH}) > 1 else []


_NAMED_CASTS = {"float": "float32", "half": "float16", "bfloat16": "bfloat16"}
_PRODUCTS = (Family.GEMM, Family.CONV, Family.ATTENTION, Family.RNN)
_FOLLOW_ALL = (Family.POINTWISE, Family.SENSITIVE, Family.LOSS, Family.GEMM, Family.REDUCTION)
_FOLLOW_ALL_OPS = frozenset({"cat", "stack"})
_FIRST_ONLY = frozenset({"masked_fill", "clamp", "dropout", "prelu", "alpha_dropout", "triu", "tril"})


def _output(
    site: Site, op: Op, policy: Autocast, half: str, tensor: TensorMeta, inputs: Sequence[str], params: Sequence[str]
) -> str:
    if tensor.dtype in _REAL:
        return _complex(tensor, (*inputs, *params))
    if not tensor.is_floating:
        return tensor.dtype
    named = site.attrs.get("dtype")
    if op.family is Family.CAST:
        return _cast_output(site, tensor, inputs)
    if isinstance(named, str) and (named in _WIDTH or named == UNKNOWN) and op.family not in _PRODUCTS:
        return named
    if policy is Autocast.LOWER:
        return promoted((*inputs, *params)) if "float64" in inputs else half
    if policy in (Autocast.FP32, Autocast.FP32_OUT):
        return "float64" if "float64" in inputs else "float32"
    return _followed(site, op, tensor, inputs, params)


def _complex(tensor: TensorMeta, operands: Sequence[str]) -> str:
    """The dtype of a complex result: autocast casts no complex operands, and they promote as their parts do."""
    parts = [_REAL.get(dtype, dtype) for dtype in operands]
    return _COMPLEX.get(promoted(parts), tensor.dtype) if all(dtype in _WIDTH for dtype in parts) else tensor.dtype


def _cast_output(site: Site, tensor: TensorMeta, inputs: Sequence[str]) -> str:
    if site.op == "type_as" and len(inputs) > 1:
        return inputs[1]
    named = site.attrs.get("dtype")
    return _NAMED_CASTS.get(site.op) or (named if isinstance(named, str) else tensor.dtype)


def _followed(site: Site, op: Op, tensor: TensorMeta, inputs: Sequence[str], params: Sequence[str]) -> str:
    """The result's dtype for an op that autocast leaves alone."""
    if op.family is Family.EMBEDDING:
        return promoted(params) or promoted(inputs) or tensor.dtype
    if op.family in (Family.CREATE, Family.RANDOM) and not (op.name.endswith("_like") or op.name.startswith("new_")):
        return tensor.dtype
    inputs = tuple(_REAL.get(dtype, dtype) for dtype in inputs)
    wide = [dtype for meta, dtype in zip(site.inputs, inputs, strict=True) if meta.shape and _may_float(meta, dtype)]
    params = [dtype for param, dtype in zip(site.params, params, strict=True) if param.meta.shape or not wide]
    floating = wide or [dtype for meta, dtype in zip(site.inputs, inputs, strict=True) if _may_float(meta, dtype)]
    if not floating:
        return promoted(params) or tensor.dtype
    if site.attrs.get("in_place") or not _takes_all(op):
        return floating[0]
    return _joined((*floating, *(params if op.family is Family.POINTWISE or op.name in _FOLLOW_ALL_OPS else ())))


def _may_float(meta: TensorMeta, dtype: str) -> bool:
    return dtype in _WIDTH or (meta.is_floating and dtype == UNKNOWN)


def _takes_all(op: Op) -> bool:
    """Whether all operands promote each other, rather than the first one deciding."""
    return (op.family in _FOLLOW_ALL or op.name in _FOLLOW_ALL_OPS) and op.name not in _FIRST_ONLY


def _joined(dtypes: Sequence[str]) -> str:
    """The promotion of operands of which some may be unknown: only FP32 and wider is certain then."""
    known = promoted(dtypes)
    return known if UNKNOWN not in dtypes or _WIDTH.get(known, 0) >= _WIDTH["float32"] else UNKNOWN
