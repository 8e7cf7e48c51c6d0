"""Runs the graph rules over a captured model and predicts what each recipe would cost on each GPU."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from amptune.analyze.estimate import Estimate, SiteTimes, estimate_all, site_times
from amptune.analyze.findings.causes import by_cause
from amptune.analyze.findings.confirm import confirmed
from amptune.analyze.findings.grouping import group, of_sites, without_repeats
from amptune.analyze.sitefacts.enrich import enrich
from amptune.analyze.stepcost.stepkernels import StepKernels
from amptune.capture import Capture
from amptune.core.closeness import FIXED, nearly_fastest
from amptune.core.evidence import Evidence, ranges_section
from amptune.core.finding import Finding
from amptune.core.graph import PrecisionGraph
from amptune.core.graph_context import NO_EVIDENCE, GraphContext, Mode
from amptune.core.hardware import Gpu
from amptune.core.reasons import why_sensitive
from amptune.core.recipes import RECIPES, STOCK, Recipe
from amptune.core.registry import LoadedRule, load_rules, select_rules
from amptune.core.rule import GraphRule
from amptune.lint.suppress import find_suppressions, suppress


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked about a model.

    Attributes:
        gpus: devices.
        gpus_named: whether the user named them or they are present.
        recipes: recipes to judge and to predict.
        recipes_named: whether the user named them.
        mode: eager or compile.
        train: whether there is a backward.
        torch_version: of the torch that captured the model.
        path: the model's file, for findings without a line.
        evidence: what is assumed and what was seen of the values.
        select, ignore: rule codes or prefixes.
        ignore_modules: globs of module paths whose findings are dropped.
    """

    gpus: tuple[Gpu, ...]
    gpus_named: bool = True
    recipes: tuple[Recipe, ...] = STOCK
    recipes_named: bool = False
    mode: Mode = "eager"
    train: bool = True
    torch_version: str = ""
    path: str = "model.py"
    evidence: Evidence = NO_EVIDENCE
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    ignore_modules: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What analyze found out.

    Attributes:
        findings: sorted by place; repeated blocks are one finding.
        estimates: GPU key -> recipe name (``+fixed`` for the repaired model) -> prediction.
        sites: predicted times of each site on the first GPU, for the table of sites.
        capture: what was captured, for the report.
        ranges: the ``ranges`` section of the report; empty where nothing was assumed.
        calls: the captured graph with each call of a site apart; ``None`` without a capture.
    """

    findings: tuple[Finding, ...]
    estimates: Mapping[str, Mapping[str, Estimate]] = dataclasses.field(hash=False)
    sites: tuple[SiteTimes, ...] = ()
    capture: Capture | None = None
    ranges: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    calls: PrecisionGraph | None = dataclasses.field(default=None, hash=False)

    def to_json(self) -> dict[str, Any]:
        """What analyze adds to the JSON of lint: ``capture``, ``estimate``, ``fastest`` and ``ranges``."""
        added: dict[str, Any] = {}
        if self.capture is not None:
            added["capture"] = {
                "frontend": self.capture.frontend,
                "sites": len(self.capture.graph),
                "seconds": round(self.capture.seconds, 3),
            }
        added["estimate"] = {
            gpu: {recipe: estimate.to_json() for recipe, estimate in table.items()}
            for gpu, table in self.estimates.items()
        }
        added["fastest"] = {gpu: names for gpu, table in added["estimate"].items() if (names := nearly_fastest(table))}
        if self.ranges:
            added["ranges"] = dict(self.ranges)
        return added


def analyze(capture: Capture, question: Question) -> Analysis:
    """Judge a captured model.

    Raises:
        ConfigError: a selector that matches no rule, or a rule pack that does not load.
    """
    calls = enriched(capture)
    return dataclasses.replace(analyze_graph(capture.graph, question, calls), capture=capture, calls=calls)


def enriched(capture: Capture) -> PrecisionGraph:
    """Add to a capture what rules need, in place, and give its graph of calls, which has that too."""
    enrich(capture.graph, capture.graph_module)
    calls = capture.by_calls()
    if calls is not capture.graph:
        enrich(calls, capture.graph_module, known=capture.graph)
    return calls


def analyze_graph(graph: PrecisionGraph, question: Question, calls: PrecisionGraph | None = None) -> Analysis:
    """Judge a graph, however it was made; ``calls`` is the same graph with each call of a site apart."""
    rules = select_rules(load_rules(GraphRule), question.select, question.ignore)
    kernels = StepKernels(graph)
    how: dict[str, Any] = {"mode": question.mode, "train": question.train, "kernels": kernels}
    estimates = estimate_all(graph, question.gpus, question.recipes, **how)
    context = _context(graph, question, calls, estimates)
    found = [finding for rule in rules for finding in _findings(cast("GraphRule", rule.cls()), context)]
    found = confirmed(found, graph, question.evidence.observed)
    estimates = _with_stops(estimates, _stops([*found, *_unasked(rules, context)]))
    timed = [gpu for gpu in question.gpus if gpu.is_cuda]
    bounds = context.bounds_under(RECIPES["fp32"], question.evidence.facts)
    sites = [
        dataclasses.replace(each, why=why_sensitive(bounds, each.site))
        for each in (site_times(graph, timed[0], question.recipes, **how) if timed else ())
    ]
    ranges = _ranges(context.by_calls, question.evidence)
    return Analysis(tuple(_put_together(found, context, question)), estimates, tuple(sites), ranges=ranges)


def _context(
    graph: PrecisionGraph,
    question: Question,
    calls: PrecisionGraph | None,
    estimates: Mapping[str, Mapping[str, Estimate]],
) -> GraphContext:
    """What rules may ask, with the predicted steps that faster kernels make shorter."""
    every = {(gpu, name): each for gpu, table in estimates.items() for name, each in table.items()}
    emulated = {
        (gpu.key, recipe.name)
        for gpu in question.gpus
        for recipe in question.recipes
        if recipe.half is not None and not gpu.is_native(recipe.half)
    }
    step_ms = {key: each.step_ms for key, each in every.items() if each.bound == "gpu" and key not in emulated}
    best = {(gpu.key, f"autocast-{gpu.best_16bit}") for gpu in question.gpus}
    waiting = {key[0] for key, each in every.items() if key in best and each.bound != "gpu"}
    return GraphContext(
        graph,
        question.gpus,
        gpus_named=question.gpus_named,
        recipes=question.recipes,
        recipes_named=question.recipes_named,
        mode=question.mode,
        train=question.train,
        torch_version=question.torch_version,
        path=question.path,
        step_ms=step_ms,
        waiting=waiting,
        evidence=question.evidence,
        calls=calls,
    )


def _put_together(found: Sequence[Finding], context: GraphContext, question: Question) -> list[Finding]:
    """What a user is told: findings but for repeats, then but for those that nobody wants to see, so that none comes
    back that a silenced one had said too; then those with one cause as one, and then those that read alike."""
    kept = [each for each in without_repeats(found) if not _is_ignored(each, question.ignore_modules)]
    return group(by_cause(_unsuppressed(kept), context), context.step_ms, question.gpus)


def _unasked(rules: Sequence[LoadedRule], context: GraphContext) -> Iterator[Finding]:
    """Findings of the rules that were not selected and tell which recipes stop."""
    selected = {rule.code for rule in rules}
    for rule in load_rules(GraphRule):
        cls = cast("type[GraphRule]", rule.cls)
        if cls.tells_stops and rule.code not in selected:
            yield from _findings(cls(), context)


def _stops(findings: Iterable[Finding]) -> dict[str, str]:
    """Recipe -> why the model does not run under it. FP8 recipes run what they do not convert as BF16 autocast."""
    found: dict[str, str] = {}
    for finding in findings:
        for name in finding.evidence.get("stops") or ():
            found.setdefault(name, f"{finding.rule} at {finding.location.path}:{finding.location.line}: "
                                   f"{finding.message}")  # fmt: skip
    for recipe in RECIPES.values():
        like = "autocast-bf16" if recipe.fp8 else "fp32" if recipe.is_tf32 else ""
        if like in found:
            found.setdefault(recipe.name, found[like])
    return found


def _with_stops(
    estimates: Mapping[str, Mapping[str, Estimate]], stops: Mapping[str, str]
) -> dict[str, dict[str, Estimate]]:
    return {
        gpu: {name: dataclasses.replace(each, stops=stops.get(name.removesuffix(FIXED), ""))
              for name, each in table.items()}
        for gpu, table in estimates.items()
    }  # fmt: skip


def _findings(rule: GraphRule, context: GraphContext) -> list[Finding]:
    return of_sites(rule.check(context.by_calls)) if rule.by_calls else list(rule.check(context))


def _ranges(context: GraphContext, evidence: Evidence) -> dict[str, Any]:
    """Bounds, what was seen, and a verdict for each site and format; empty where nothing was assumed."""
    if evidence.assumptions is None:
        return {}
    bounds = context.bounds_under(RECIPES["fp32"], evidence.assumptions)
    return ranges_section(bounds, evidence)


def _is_ignored(finding: Finding, modules: Iterable[str]) -> bool:
    return finding.site is not None and any(fnmatch.fnmatchcase(finding.site, pattern) for pattern in modules)


def _unsuppressed(findings: Sequence[Finding]) -> list[Finding]:
    """Findings without those that a comment on their source line silences; unused comments are lint's business."""
    by_file: dict[str, list[Finding]] = {}
    for finding in findings:
        by_file.setdefault(finding.location.path, []).append(finding)
    kept: list[Finding] = []
    for path, group_of_file in by_file.items():
        left, _ = suppress(group_of_file, find_suppressions(_text(path), python=True))
        kept.extend(left)
    return kept


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""  # a finding in a package without source has no line to carry a comment
