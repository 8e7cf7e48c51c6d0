"""The PrecisionGraph: the sites of a model, and the tensors that flow between them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from amptune.core.finding import Location

if TYPE_CHECKING:
    import networkx as nx

INPUT = "<input>"
OUTPUT = "<output>"
"""Ids of the two pseudo-nodes of the graph: what the batch feeds and what the model (or its loss) returns."""
LOSS = "loss_fn"
"""Module path of the sites of the loss, which is a function and not part of the model."""


@dataclasses.dataclass(frozen=True)
class TensorMeta:
    """Shape and type of one tensor, without its values. ``dtype`` is torch's name, such as ``float32``."""

    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return DTYPE_BYTES.get(self.dtype, 4)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor, dense."""
        return self.numel * self.itemsize

    @property
    def is_floating(self) -> bool:
        """Whether precision is a question for this tensor (complex tensors are not ours to lower)."""
        return self.dtype in FLOATING_DTYPES


FLOATING_DTYPES = frozenset({"float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"})
DTYPE_BYTES: dict[str, int] = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
    "complex128": 16, "complex64": 8, "complex32": 4,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Gemm:
    """The matrix product [batch] x (M, K) x (K, N) that a site runs in its forward.

    The input gradient is (M, N) x (N, K) and the weight gradient (N, M) x (M, K): the same three numbers, so each of
    them is a reduction length once. Convolutions are given as their implicit GEMM (M = batch x output positions,
    N = output channels, K = input channels / groups x kernel size, batch = groups).
    """

    m: int
    n: int
    k: int
    batch: int = 1

    @property
    def flops(self) -> int:
        """Floating point operations of one such product (a multiply and an add count as two)."""
        return 2 * self.batch * self.m * self.n * self.k


@dataclasses.dataclass(frozen=True)
class Param:
    """A parameter of a site: its full name in ``state_dict`` and its shape. Tied parameters carry the same ``key``."""

    name: str
    meta: TensorMeta
    key: str = ""


@dataclasses.dataclass(frozen=True)
class SiteCall:
    """Which call of a site that is called several times.

    Attributes:
        site: id of the site.
        number: of this call, from 1.
        count: of all its calls.
        place: where it is made, as ``model.py:12``: the innermost line in which the calls differ; empty for those of a
            loop.
    """

    site: str
    number: int
    count: int
    place: str = ""


@dataclasses.dataclass(frozen=True)
class Site:
    """One place where precision is decided: a leaf module call, or a functional op in the forward of a module.

    Attributes:
        id: module path for a module (the first one, for a shared module), ``path#op.n`` for a functional op, with n
            counting the calls of that op in that forward in order of line and column.
        op: name in the op table (``amptune.core.ops``): linear, conv2d, softmax, ...
        kind: whether it is a module call or a functional op.
        module: path of the module itself, or of the module whose forward holds the op.
        module_type: fully qualified class of that module.
        inputs, outputs: tensors of the first call, forward, in order.
        sources: for each of ``inputs`` where it comes from: a site id, INPUT, the ``state_dict`` name of a parameter or
            buffer, or "" for a constant made in the forward. Empty when the frontend does not say.
        params: parameters that the site reads.
        gemms: matrix products of the forward, all calls.
        flops: floating point operations of the forward, all calls.
        bytes_moved: bytes read and written by the forward at the captured dtypes, all calls.
        location: the user's source line that makes the call, when known.
        code: where the op stands in the source as ``Class.forward#op.n``: equal for all instances of one class.
        calls: how often one forward of the model calls it.
        attrs: op arguments that rules need, by torch's argument names (eps, dim, groups, min, max, exponent, p, ...).
            ``scalars``: numbers among the positional operands, as {position: value}: ``x + 1e-8`` has {1: 1e-8}.
            ``operands``: for a functional op, what each positional argument is: an index into ``inputs`` (twice the
            same for ``x * x``), or None for a number, a parameter or a constant made in the forward.
            ``by_name``: {argument: index into ``inputs``}, for tensors that are given by name.
            ``in_place``: it writes its first operand, whose dtype stays. ``called``: its name in the user's code, where
            that is not the op's: ``fill_diagonal_``.
            ``casts``: {index of an input: dtype}, for inputs that the user's code casts on the way (``x.float()``);
            empty dtype where it is that of another tensor. ``param_casts``: {name: dtype}, the same for parameters.
            ``like``: {index of an input: site id}, for inputs made by zeros_like and its kin, or cast to the dtype of
            a site's result; INPUT for the dtype of a parameter, a buffer or the batch.
            ``operand_params``: {positional argument: name of the parameter that it is}.
            ``bounds``: {index of an input: (low, high)}, for inputs that no site makes: constants, buffers, random
            numbers, arithmetic on integers. ``batch``: {index of an input: name of the batch's tensor}.
            ``reckoned``: {index of an input: name of the node of the forward that made it, of one that no site made}.
            ``exact``: (low, high, number of zeros) of a result that is worked out from constants alone.
            ``views``: {index of an input: (views that pick some of its numbers, all views)}, as text, of all calls
            where they differ; ``turns``: of the others.
            ``axes``: {index of an input: for each axis that of what made it, counted from the last}, through views.
            ``kept``: {index of an input: (axes, axes)}, for constant masks: along which, from -1 for the last, every
            line has a number that is not zero, and a zero. ``triangles``: {index of an input: (whether a constant mask
            holds nowhere above the diagonal, everywhere above it)}. ``one_hot``: indices of inputs that one_hot made;
            ``pairs``: of masks that say which numbers of a vector are equal.
            ``narrowed``: {index of an input: 8-bit dtype that it is cast to on the way, even if it is cast back}.
            ``passed``: {index of an input: dtypes that it is cast to on the way, in order}, those that change numbers.
            ``passed_too``: {index of an input: those of its other ways}, as of later calls; ``varied``: indices of
            inputs that have these, or are other tensors of the batch; ``uneven``: calls read more or fewer tensors than
            the first, as ``x * x`` and ``x * y``.
            ``several``: a layer that calls several ops, of which ``op`` is one; a call that gives or writes several
            tensors: ``_foreach_mul_``, ``out=(values, indices)``.
            ``whole``: indices of inputs that are integers, or were before a cast.
            ``random``: an input is drawn in the forward. ``later_sources``: ``sources`` of the calls after the first.
            ``call_params``: how many of ``params`` the first call reads, where other calls of its line read others.
            ``written``: {index of an input: sites that wrote into parts of it since it was made, all calls}; an empty
            name for a writer that is no site. ``puts``: (indices of inputs, numbers) that the result of ``x[i] = y``
            and its like holds, and nothing else.
            ``integers``: {index of an input: count}, for inputs made by arange or randint. ``fp32_limit``: the call
            names a limit of FP32 (``torch.finfo(torch.float32).min``), rather than that of its input. ``masked``:
            attention with a mask. ``mask_strided``: whose neighbours in the last dimension lie apart in memory;
            ``mask_causal``: a constant that keeps what is_causal keeps. ``fused``: of nn.MultiheadAttention, whether it
            calls scaled_dot_product_attention, being asked for no weights; ``masked`` and ``is_causal`` are then known.
            ``viewed``: views between the producers and this site; ``copied``: elements that they copy, being no views.
            ``fixed_statistics``: of a batch or instance norm that divides by stored numbers, as in eval mode.
            ``dtype``: torch's name, for an op whose call names one. ``channels_last``: its input is laid out so.
            ``image``: False where it would not be laid out so in a model in channels_last either.
            ``autocast``: False inside a region that switches autocast off.
        nodes: names of the torch.fx nodes that it covers.
        opaque: leaf whose inside is not visible or not ours to change (RNN, quantised, custom autograd function).
        call: which call it is, in a graph of calls; ``None`` for the only call of a site, and in a graph of sites.
    """

    id: str
    op: str
    kind: Literal["module", "function"]
    module: str
    module_type: str = ""
    inputs: tuple[TensorMeta, ...] = ()
    outputs: tuple[TensorMeta, ...] = ()
    sources: tuple[str, ...] = ()
    params: tuple[Param, ...] = ()
    gemms: tuple[Gemm, ...] = ()
    flops: int = 0
    bytes_moved: int = 0
    location: Location | None = None
    code: str = ""
    calls: int = 1
    attrs: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    nodes: tuple[str, ...] = ()
    opaque: bool = False
    call: SiteCall | None = None

    @property
    def site_id(self) -> str:
        """The id that reports use: that of the site, for one of its calls too."""
        return self.call.site if self.call else self.id

    @property
    def is_module(self) -> bool:
        """Whether the site is a leaf module call."""
        return self.kind == "module"


class PrecisionGraph:
    """Sites in call order, and between them the tensors: an edge holds a list, since two sites can share several."""

    def __init__(self) -> None:
        # Here and not above: the rules name these classes, and can be listed and explained without networkx.
        import networkx as nx

        self.graph: nx.DiGraph = nx.DiGraph()
        self.graph.add_nodes_from([INPUT, OUTPUT])
        self._sites: dict[str, Site] = {}

    def add_site(self, site: Site) -> None:
        """Add a site; raises ValueError when its id is taken."""
        if site.id in self._sites:
            raise ValueError(f"two sites are called {site.id!r}")
        self._sites[site.id] = site
        self.graph.add_node(site.id)

    def replace_site(self, site: Site) -> None:
        """Put a new version of a known site in its place, edges kept."""
        self._sites[self._sites[site.id].id] = site

    def add_tensor(self, source: str, target: str, tensor: TensorMeta) -> None:
        """Say that ``tensor`` flows from ``source`` to ``target`` (site ids, INPUT or OUTPUT)."""
        if self.graph.has_edge(source, target):
            self.graph.edges[source, target]["tensors"].append(tensor)
        else:
            self.graph.add_edge(source, target, tensors=[tensor])

    def __len__(self) -> int:
        return len(self._sites)

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites.values())

    def __contains__(self, site_id: object) -> bool:
        return site_id in self._sites

    def __getitem__(self, site_id: str) -> Site:
        return self._sites[site_id]

    def edges(self) -> Iterator[tuple[str, str, list[TensorMeta]]]:
        """All edges as (source, target, tensors)."""
        for source, target, data in self.graph.edges(data=True):
            yield source, target, data["tensors"]

    def producers(self, site_id: str) -> list[Site]:
        """Sites whose output ``site_id`` reads, in order of insertion."""
        return [self._sites[name] for name in self.graph.predecessors(site_id) if name in self._sites]

    def consumers(self, site_id: str) -> list[Site]:
        """Sites that read the output of ``site_id``, in order of insertion."""
        return [self._sites[name] for name in self.graph.successors(site_id) if name in self._sites]

    def tensors(self, source: str, target: str) -> list[TensorMeta]:
        """Tensors that flow from one site to another; empty when none does."""
        if not self.graph.has_edge(source, target):
            return []
        return list(self.graph.edges[source, target]["tensors"])

    @property
    def flops(self) -> int:
        """Forward floating point operations of the whole model."""
        return sum(site.flops for site in self)

    def fingerprint(self) -> str:
        """A hash of ids, ops and shapes: two models with the same one have the same search space."""
        import hashlib

        digest = hashlib.sha256()
        for site in self:
            shapes = [tensor.shape for tensor in (*site.inputs, *site.outputs, *(p.meta for p in site.params))]
            digest.update(repr((site.id, site.op, site.calls, shapes)).encode())
        return digest.hexdigest()[:16]
