"""Hand-built graphs for tests, small enough to check by hand."""

from __future__ import annotations

from typing import Any

from amptune.core.finding import Location
from amptune.core.graph import INPUT, OUTPUT, Gemm, Param, PrecisionGraph, Site, TensorMeta


def tensor(*shape: int, dtype: str = "float32", grad: bool = True) -> TensorMeta:
    return TensorMeta(shape, dtype, grad)


def linear(name: str, source: str, m: int, k: int, n: int, *, grad: bool = True, line: int = 1) -> Site:
    return Site(
        id=name,
        op="linear",
        kind="module",
        module=name,
        inputs=(tensor(m, k, grad=grad),),
        outputs=(tensor(m, n),),
        sources=(source,),
        params=(Param(f"{name}.weight", tensor(n, k), f"{name}.weight"),),
        gemms=(Gemm(m, n, k),),
        flops=2 * m * n * k,
        location=Location("model.py", line),
    )


def op(name: str, kind: str, *sources: str, shape: tuple[int, ...] = (8, 16), line: int = 1, **attrs: Any) -> Site:
    return Site(
        id=name,
        op=kind,
        kind="function",
        module="",
        inputs=tuple(tensor(*shape) for _ in sources),
        outputs=(tensor(*shape),),
        sources=sources,
        location=Location("model.py", line),
        attrs=attrs,
    )


def graph_of(*sites: Site, outputs: tuple[str, ...] = ()) -> PrecisionGraph:
    graph = PrecisionGraph()
    for site in sites:
        graph.add_site(site)
    for site in sites:
        for source, meta in zip(site.sources, site.inputs, strict=True):
            if source in graph or source == INPUT:
                graph.add_tensor(source, site.id, meta)
    for name in outputs or (sites[-1].id,):
        graph.add_tensor(name, OUTPUT, graph[name].outputs[0])
    return graph


def mlp(m: int = 4096, width: int = 4096, layers: int = 3, out: int | None = None) -> PrecisionGraph:
    """Linear and relu, ``layers`` times; the first linear's input needs no gradient."""
    sites, source = [], INPUT
    for index in range(layers):
        n = out if out and index == layers - 1 else width
        sites.append(linear(f"layers.{index}", source, m, width, n, grad=index > 0, line=10))
        sites.append(op(f"#relu.{index}", "relu", sites[-1].id, shape=(m, n), line=11))
        source = sites[-1].id
    return graph_of(*sites)
