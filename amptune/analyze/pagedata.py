"""Gathers what the page of an analysis shows: each site with its times, its risk in each format and its values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from amptune import __version__
from amptune.analyze.estimate import launch_words
from amptune.analyze.sitetable import shape_of
from amptune.analyze.stepcost.kernels import needs_backward
from amptune.core.autocast import SiteDtypes, realise
from amptune.core.bounds.intervals import Range
from amptune.core.bounds.ranges import Ranges
from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import DTYPE_BYTES, PrecisionGraph, Site
from amptune.core.hardware import Gpu
from amptune.core.observed import Observed
from amptune.core.op_support import lacks_kernel
from amptune.core.ops import Family, op_named
from amptune.core.reasons import why_sensitive
from amptune.core.recipes import RECIPES, converts_to_fp8
from amptune.report.analyze_data import PageData, PageSite, Risk, Spread

if TYPE_CHECKING:
    from amptune.analyze.runner import Analysis, Question

FORMATS = (Format.BF16, Format.FP16, Format.FP8_E4M3)
"""Formats that a site's risk is shown for; each has a recipe that brings it in."""
_RECIPE_OF = {Format.BF16: "autocast-bf16", Format.FP16: "autocast-fp16", Format.FP8_E4M3: "fp8-tensorwise"}
_PRODUCTS = (Family.GEMM, Family.CONV, Family.ATTENTION, Family.RNN)
_NUMERIC = ("G2", "G3", "G4", "G5")
"""Rules whose findings speak of values and kernels; those of G1 speak of speed."""
_NAMES = {
    Format.BF16: re.compile(r"\b(bf16|bfloat16|autocast-bf16)\b", re.I),
    Format.FP16: re.compile(r"\b(fp16|float16|half|autocast-fp16|65504)\b", re.I),
    Format.FP8_E4M3: re.compile(r"\b(fp8\w*|float8\w*|e4m3|e5m2)\b", re.I),
}


def page_data(analysis: Analysis, question: Question) -> PageData:
    """The page's content for an analysis of a captured model."""
    capture = analysis.capture
    if capture is None:
        raise ValueError("an analysis without its capture has no sites to show")
    timed = next((gpu for gpu in question.gpus if gpu.is_cuda), None)
    half = f"autocast-{(timed or question.gpus[0]).best_16bit}"
    return PageData(
        target=question.path,
        gpus=question.gpus,
        gpu=timed,
        half=half,
        mode=question.mode,
        train=question.train,
        estimate=analysis.to_json()["estimate"],
        findings=analysis.findings,
        sites=tuple(_sites(analysis, capture.graph, half, question)),
        facts=_facts(analysis, question, timed),
        notes=capture.notes,
        tool=f"amptune {__version__}",
    )


def _facts(analysis: Analysis, question: Question, timed: Gpu | None) -> dict[str, str]:
    capture = analysis.capture
    assert capture is not None
    params = {param.key or param.name: param.meta.numel for site in capture.graph for param in site.params}
    constants = "measured on it by a micro-benchmark" if timed and timed.measured else "of its generation (a table)"
    return {
        "Captured by": f"{capture.frontend}, in {capture.seconds:.1f} s, torch {question.torch_version}",
        "Sites": f"{len(capture.graph):,}",
        "Parameters": f"{sum(params.values()):,}",
        "Forward": _flops(capture.graph.flops),
        "Loss": "the target's own" if capture.has_loss else "none in the graph",
        "Mode": question.mode,
        "Efficiencies": f"{timed.name}: {constants}" if timed else "no GPU is timed",
        **({"Launches": f"{timed.name}: {launch_words(timed, question.mode)}"} if timed else {}),
    }


def _flops(count: float) -> str:
    """With three digits and the unit that makes it shortest."""
    factor, unit = next(((f, u) for f, u in ((1e15, "P"), (1e12, "T"), (1e9, "G")) if count >= f), (1e6, "M"))
    return f"{count / factor:,.3g} {unit}FLOP"


def _sites(analysis: Analysis, graph: PrecisionGraph, half: str, question: Question) -> Iterable[PageSite]:
    times = {row.site.id: row.milliseconds for row in analysis.sites}
    dtypes = {each: realise(graph, RECIPES[_RECIPE_OF[each]]) for each in FORMATS}
    evidence = question.evidence
    bounds = _bounds(analysis.calls or graph, question)
    how = "assumed" if evidence.assumptions is not None else "bound"
    at = _by_site(analysis.findings)
    known = Ranges(graph, realise(graph, RECIPES["fp32"]), evidence.facts)
    computed = dtypes[Format.FP16] if half == "autocast-fp16" else dtypes[Format.BF16]
    for site in graph:
        found = at.get(site.id, [])
        compute = computed[site.id].compute
        yield PageSite(
            id=site.id,
            op=site.op,
            family=str(op_named(site.op).family),
            shape=shape_of(site),
            calls=site.calls,
            place=f"{site.location.path}:{site.location.line}" if site.location else "",
            flops=float(site.flops * _passes(site, question.train)),
            intensity=_intensity(site, compute),
            milliseconds=times.get(site.id, {}),
            compute=compute,
            risks={str(each): _risk(site, each, dtypes[each][site.id], found, known) for each in FORMATS},
            spread=_observed(evidence.observed, site) or _bounded(site, bounds[site.id], how),
            rules=tuple(dict.fromkeys(finding.rule for finding in found)),
        )


def _bounds(calls: PrecisionGraph, question: Question) -> Mapping[str, Range]:
    """Site id -> bounds under BF16."""
    assumed = question.evidence.assumptions or question.evidence.facts
    return Ranges(calls, realise(calls, RECIPES[_RECIPE_OF[Format.BF16]]), assumed).by_site()


def _by_site(findings: Sequence[Finding]) -> Mapping[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        for name in finding.evidence.get("sites") or ([finding.site] if finding.site is not None else []):
            found.setdefault(name, []).append(finding)
    return found


def _passes(site: Site, train: bool) -> float:
    """How often a step does the forward's operations: once for each of the products that training needs."""
    family = op_named(site.op).family
    if not train or not needs_backward(site):
        return 1.0
    if family is Family.ATTENTION:
        return 3.5
    if family not in _PRODUCTS:
        return 2.0
    of_input = any(tensor.requires_grad for tensor in site.inputs)
    of_weight = any(param.meta.requires_grad for param in site.params) or len(site.inputs) > 1
    return 1.0 + of_input + of_weight


def _intensity(site: Site, compute: str) -> float:
    if not site.flops or not site.bytes_moved:
        return 0.0
    stored = next((tensor.dtype for tensor in site.inputs if tensor.is_floating), "float32")
    width = DTYPE_BYTES.get(compute, 4) / DTYPE_BYTES.get(stored, 4)
    return site.flops / (site.bytes_moved * width)


def _risk(
    site: Site, number_format: Format, dtypes: SiteDtypes, findings: Sequence[Finding], known: Ranges
) -> tuple[Risk, str]:
    """The worst that is known of a site under the recipe that brings the format in."""
    named = [
        finding
        for finding in findings
        if finding.rule.startswith(_NUMERIC) and _NAMES[number_format].search(finding.message)
    ]
    worst = max(named, key=lambda finding: finding.severity, default=None)
    if worst is not None and worst.severity >= Severity.WARNING:
        level = Risk.FAILS if worst.severity is Severity.ERROR else Risk.WARNED
        return level, f"{worst.rule}: {worst.message}"
    inside = converts_to_fp8(site) if number_format.is_fp8 else dtypes.compute == number_format.torch_name
    if not inside:
        return Risk.KEPT, f"runs in {dtypes.compute}" if dtypes.compute else "holds no floating numbers"
    if not number_format.is_fp8 and lacks_kernel(site.op, number_format.torch_name, "cuda"):
        return Risk.FAILS, f"{site.op} has no {number_format} kernel on CUDA"
    why = why_sensitive(known, site)
    if why and dtypes.in_half and not (number_format is Format.BF16 and "fp16" in why and "bf16" not in why):
        return Risk.SENSITIVE, why
    return Risk.FINE, f"{worst.rule}: {worst.message}" if worst else ""


def _observed(observed: Observed | None, site: Site) -> Spread | None:
    """What a recorded step showed of the site."""
    stat = observed.forward.get(site.id) if observed is not None else None
    if stat is None:
        return None
    smallest = 2.0 ** min(stat.exponents) if stat.exponents else 0.0
    return Spread(smallest, stat.magnitude, "observed")


def _bounded(site: Site, found: Range, how: str) -> Spread | None:
    """The bound of the site's values; ``None`` where none is known."""
    if not any(tensor.is_floating for tensor in site.outputs):
        return None
    if math.isinf(found.magnitude):
        return None
    return Spread(max(found.low, -found.high, 0.0), found.magnitude, how)
