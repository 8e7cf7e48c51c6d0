"""The page of ``amptune analyze --html``: one file that works offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from amptune.core.closeness import FIXED, nearly_fastest
from amptune.core.finding import Finding, Severity
from amptune.core.recipes import RECIPES
from amptune.core.sizes import size_text
from amptune.report.analyze_charts import number_lines, roofline
from amptune.report.analyze_data import PageData, PageSite, Risk
from amptune.report.analyze_tree import model_tree, risk_class, risk_legend
from amptune.report.page import Markup, folded, join, number_cell, page, section, table, tag
from amptune.report.svg import symbols
from amptune.report.table import CLOSENESS_NOTE, TOO_CLOSE, fastest_lines, row_names
from amptune.report.tune_data import ms

MOST_ROWS = 4000
"""Rows of the table of sites: a browser sorts and filters so many without a wait."""
SITES_IN_FINDING = 40
WORTH_NAMING = 1.02
"""A speedup below this is no gain."""


def analyze_report(data: PageData) -> str:
    """The page as text."""
    return page(
        f"amptune: {data.target}: {_headline(data)}",
        symbols(),
        _header(data),
        section("Recipes", "recipes", _recipes(data)),
        section("Findings", "findings", _findings(data)),
        section("The model", "model", _tree(data)),
        section("Roofline", "roofline", roofline(data) or tag("p", "No GPU is timed: name one with --gpu.")),
        section("Values", "values", number_lines(data) or tag("p", "No site has values with a known bound.")),
        section("Sites", "sites", _site_table(data)),
        section("How this was found", "setup", _setup(data)),
        tag("footer", f"Written by {data.tool}. Nothing was run on a GPU; the same numbers come as --format json."),
    )


def _headline(data: PageData) -> str:
    return "; ".join(part for part in (_gain_words(data), _counted(data.findings) or "no findings") if part)


def _gain_words(data: PageData) -> str:
    best = _best(data)
    if data.gpu is None or best is None:
        return ""
    name, entry = best
    if entry["speedup"] < WORTH_NAMING:
        return f"no recipe is predicted to beat fp32 on {data.gpu.key}"
    close = nearly_fastest(data.estimate.get(data.gpu.key, {}))
    told = f" (too close to call: {', '.join(close)})" if len(close) > 1 else ""
    return f"{name} is predicted {entry['speedup']:.2f} times as fast as fp32 on {data.gpu.key}{told}"


def _best(data: PageData) -> tuple[str, Mapping[str, Any]] | None:
    """The fastest recipe that fits the page's GPU."""
    found = data.estimate.get(data.gpu.key, {}) if data.gpu else {}
    fitting = {name: entry for name, entry in found.items() if entry.get("fits") and not name.startswith("fp32")}
    name = max(fitting, key=lambda key: fitting[key]["speedup"], default=None)
    if name is None:
        return None
    plain = name.removesuffix(FIXED)
    # The fixed model is named only where fixing changes something.
    if name != plain and plain in fitting and fitting[plain]["speedup"] >= 0.995 * fitting[name]["speedup"]:
        name = plain
    return name, fitting[name]


def _counted(findings: Sequence[Finding]) -> str:
    parts = []
    for severity in sorted(Severity, reverse=True):
        count = sum(finding.severity is severity for finding in findings)
        if count:
            parts.append(f"{count} {severity}{'s' if count > 1 and severity is not Severity.INFO else ''}")
    return ", ".join(parts)


def _header(data: PageData) -> Markup:
    headline = _headline(data)
    figures = (tag("div", tag("dt", name), tag("dd", value)) for name, value in _figures(data))
    return tag(
        "header",
        tag("p", "amptune analyze", tag("code", data.target), class_="eyebrow"),
        tag("h1", f"{headline[0].upper()}{headline[1:]}"),
        tag("dl", *figures, class_="figures"),
        tag("nav", *(tag("a", words, href=f"#{name}") for name, words in _PARTS), class_="parts", aria_label="Parts"),
    )


_PARTS = (
    ("recipes", "Recipes"), ("findings", "Findings"), ("model", "Model"), ("roofline", "Roofline"),
    ("values", "Values"), ("sites", "Sites"), ("setup", "How"),
)  # fmt: skip


def _figures(data: PageData) -> Iterator[tuple[str, str]]:
    best, base = _best(data), data.estimate.get(data.gpu.key, {}).get("fp32") if data.gpu else None
    if data.gpu and base and "reason" not in base:
        yield f"fp32 step on {data.gpu.key}", ms(base["step_ms"])
    if best:
        yield f"{best[0]} step", ms(best[1]["step_ms"])
        yield f"{best[0]} memory", size_text(best[1]["memory_bytes"])
    yield "Sites", f"{len(data.sites):,}"
    if "Parameters" in data.facts:
        yield "Parameters", data.facts["Parameters"]


def _recipes(data: PageData) -> Markup:
    """Every recipe on every GPU; a bar shows the speedup over FP32."""
    top = max((entry["speedup"] or 0.0 for found in data.estimate.values() for entry in found.values()), default=1.0)
    named = row_names(data.estimate)
    rows = [
        _recipe_row(gpu, named.get(name, name), entry, top)
        for gpu, found in data.estimate.items()
        for name, entry in _ordered(found)
        if not _is_idle(name, found)
    ]
    if not rows:
        return tag("p", "No GPU was asked about that can be timed: name one with --gpu, such as --gpu h100.")
    head = ["GPU", "Recipe", "Step", f"Speedup over {named.get('fp32', 'fp32')}", "Memory", "Remarks"]
    note = (
        "Predicted by a roofline, nothing was run. +fixed: the model with its misaligned dimensions padded and its "
        "convolutions in channels_last; left out where that changes nothing."
    )
    content = table("Recipes on each GPU", head, rows, class_="sortable recipes", example="Filter: h100 bf16")
    fastest = list(fastest_lines(data.estimate, named))
    if any(line.startswith(TOO_CLOSE) for line in fastest):
        note = f"{CLOSENESS_NOTE} {note}"
    answers = (tag("p", f"{line[0].upper()}{line[1:]}.") for line in fastest)
    return join([content, *answers, tag("p", note, class_="note")])


def _ordered(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    names = [name for recipe in RECIPES for name in (recipe, recipe + FIXED) if name in found]
    return [(name, found[name]) for name in names]


def _is_idle(name: str, found: Mapping[str, Any]) -> bool:
    """Whether fixing the model changes its step by less than half a percent."""
    plain = found.get(name.removesuffix(FIXED))
    if plain is None or not name.endswith(FIXED):
        return False
    if "reason" in plain:
        return True
    return abs(float(plain["step_ms"]) / float(found[name]["step_ms"]) - 1) < 0.005


def _recipe_row(gpu: str, name: str, entry: Mapping[str, Any], top: float) -> list[str]:
    if "reason" in entry:
        none = number_cell("–")
        return [gpu, name, none, none, none, f"does not run: {entry['reason']}"]
    remarks = [] if entry["fits"] else ["needs more than the GPU's memory"]
    if entry["bound"] == "launch":
        remarks.append(f"bound by launches on the processor; the kernels alone take {ms(entry['gpu_ms'])}")
    width = f"{100 * entry['speedup'] / top:.1f}%"
    bar = tag("span", class_="meter", style=f"--width:{width}", aria_hidden="true")
    speedup = tag("td", bar, f"{entry['speedup']:.2f}×", class_="number", data_sort=repr(float(entry["speedup"])))
    return [
        gpu,
        name,
        number_cell(ms(entry["step_ms"]), entry["step_ms"]),
        speedup,
        number_cell(size_text(entry["memory_bytes"]), entry["memory_bytes"]),
        ", ".join(remarks) or "–",
    ]


def _findings(data: PageData) -> Markup:
    if not data.findings:
        return tag("p", "None.")
    ordered = sorted(data.findings, key=lambda finding: (-finding.severity, -_saved(finding), finding.sort_key))
    rows = [_finding_row(finding) for finding in ordered]
    head = ["Severity", "Rule", "What", "Where"]
    return table("Findings, the worst first", head, rows, class_="sortable findings", example="Filter: warning G2")


def _saved(finding: Finding) -> float:
    saved: Mapping[str, float] = finding.evidence.get("saves_ms") or {}
    return max(saved.values(), default=0.0)


def _finding_row(finding: Finding) -> list[str]:
    severity = tag("td", tag("span", str(finding.severity), class_=f"badge severity-{finding.severity}"),
                   data_sort=str(-int(finding.severity)))  # fmt: skip
    names = list(finding.evidence.get("sites") or ([finding.site] if finding.site else []))
    place = f"{finding.location.path}:{finding.location.line}"
    where = [tag("code", place)]
    if names:
        where.append(tag("small", *_listed(names)))
    rule = tag("td", tag("code", finding.rule), tag("small", finding.name))
    return [severity, rule, finding.message, tag("td", *where)]


def _listed(names: Sequence[str]) -> list[str]:
    if len(names) == 1:
        return [names[0]]
    shown = ", ".join(names[:SITES_IN_FINDING])
    more = f" and {len(names) - SITES_IN_FINDING} more" if len(names) > SITES_IN_FINDING else ""
    return [folded(f"{len(names)} sites", shown + more)]


def _tree(data: PageData) -> Markup:
    where = f" on {data.gpu.name}" if data.gpu else ""
    note = (
        f"Milliseconds of the kernels in a step (predicted{where}; the optimizer and waiting for launches come on "
        "top), and what becomes of each part in each format under its recipe."
    )
    return join([tag("p", note, class_="note"), risk_legend(), model_tree(data)])


def _site_table(data: PageData) -> Markup:
    recipes = _recipe_columns(data)
    formats = list(data.sites[0].risks) if data.sites else []
    times = [f"{name.removeprefix('autocast-')} ms" for name in recipes]
    head = ["Site", "Op and shape", *times, *(["Gain"] if recipes else []), *map(_short, formats)]
    ordered = sorted(data.sites, key=lambda site: -_gain(site, recipes))
    rows = [_site_row(site, recipes, formats) for site in ordered[:MOST_ROWS]]
    content = table("Sites, the largest gain first", head, rows, class_="sortable wide", example="Filter: attn linear")
    left = len(ordered) - MOST_ROWS
    more = f" The {left:,} sites that gain least are left out." if left > 0 else ""
    note = f"Gain: FP32 against the fastest of the recipes shown, in milliseconds a step.{more}"
    return join([content, tag("p", note, class_="note")])


def _recipe_columns(data: PageData) -> list[str]:
    """FP32, TF32 and the GPU's 16-bit recipe, and the last one's fixed model where fixing gains."""
    known = {name for site in data.sites for name in site.milliseconds}
    fixed = data.half + FIXED
    gains = any(site.ms(fixed) < 0.99 * site.ms(data.half) for site in data.sites if fixed in site.milliseconds)
    return [name for name in ("fp32", "tf32", data.half, *([fixed] if gains else [])) if name in known]


def _gain(site: PageSite, recipes: Sequence[str]) -> float:
    return site.ms("fp32") - min((site.ms(name) for name in recipes), default=site.ms("fp32"))


def _site_row(site: PageSite, recipes: Sequence[str], formats: Sequence[str]) -> list[str]:
    details = " · ".join(part for part in (site.place, f"called {site.calls} times" if site.calls > 1 else "",
                                           " ".join(site.rules)) if part)  # fmt: skip
    name = tag("td", tag("code", site.id or "the model itself"), tag("small", details))
    times = [number_cell(_milliseconds(site, recipe), site.milliseconds.get(recipe)) for recipe in recipes]
    gain = [number_cell(f"{_gain(site, recipes):.3f}", _gain(site, recipes))] if recipes else []
    op = tag("td", site.op, tag("small", site.shape))
    return [name, op, *times, *gain, *(_risk_cell(site, each) for each in formats)]


def _short(name: str) -> str:
    """``fp8`` for ``fp8_e4m3``."""
    return name.partition("_")[0]


def _milliseconds(site: PageSite, recipe: str) -> str:
    return f"{site.milliseconds[recipe]:.3f}" if recipe in site.milliseconds else "–"


def _risk_cell(site: PageSite, name: str) -> Markup:
    risk, why = site.risks.get(name, (Risk.FINE, ""))
    mark = tag("span", risk.words, class_=f"cell {risk_class(risk)}", title=why or risk.meaning)
    return tag("td", mark, data_sort=str(int(risk)))


def _setup(data: PageData) -> Markup:
    facts = [tag("div", tag("dt", name), tag("dd", value)) for name, value in data.facts.items()]
    notes = [tag("li", note) for note in data.notes]
    listed = [tag("h3", "Assumptions and notes"), tag("ul", *notes, class_="facts")] if notes else []
    return join([tag("dl", *facts, class_="facts"), *listed])
