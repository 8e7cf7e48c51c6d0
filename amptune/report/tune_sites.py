"""Which site computes in which format: the model as a tree, and a table with the reasons."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from amptune.core.choice import FP32, Choice
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.core.tables import CostTable
from amptune.report.page import Markup, join, number_cell, table, tag
from amptune.report.tune_data import ms

if TYPE_CHECKING:  # networkx is not needed to read a graph
    from amptune.core.graph import PrecisionGraph, Site

WHOLE = "the whole model"
OPEN_UP_TO = 60
"""A tree with more rows than this starts with its inner parts closed."""
_ALIKE = " ("
"""Parts a name from the words about how many it stands for; no path of a model holds it."""
_HOW = {
    "follow": "runs in the format of its inputs",
    "source": "pinned at its source line",
    "autocast": "in a local autocast region",
    "own": "reads as a cast of itself",
    "read": "read past its layer, as a cast",
    "late": "computed with in FP32, and cast where it meets 16 bits",
}


@dataclasses.dataclass(frozen=True)
class SiteRow:
    """One site of the plan with what the graph and the cost table know of it.

    ``saved`` is the milliseconds that its format saves against FP32 (as TF32 where the plan allows that), forward and
    backward, measured alone; negative where it costs time; None in FP32 and when it was not measured.
    """

    id: str
    decision: SitePlan
    site: Site | None = None
    saved: float | None = None

    @property
    def name(self) -> str:
        """Its id, or words for the root."""
        return self.id or WHOLE


class Node:
    """A part of the model: its children by name, and the decision for itself when it is a site."""

    def __init__(self) -> None:
        self.children: dict[str, Node] = {}
        self.row: SiteRow | None = None

    def rows(self) -> Iterator[SiteRow]:
        """All sites in it, itself first."""
        if self.row is not None:
            yield self.row
        for child in self.children.values():
            yield from child.rows()

    def alike(self) -> object:
        """Equal for parts that have the same shape and the same formats."""
        own = None if self.row is None else (self.row.decision.format, self.row.decision.pad, self.row.decision.how)
        return own, tuple((name, child.alike()) for name, child in self.children.items())


def site_rows(plan: Plan, graph: PrecisionGraph | None, costs: CostTable | None) -> list[SiteRow]:
    """The plan's sites in the order of the model's calls; those that the graph does not hold come last."""
    known = [site.id for site in graph if site.id in plan.sites] if graph is not None else []
    names = dict.fromkeys([*known, *plan.sites])
    costs = costs.in_tf32() if costs is not None and plan.tf32 else costs
    return [
        SiteRow(name, plan.sites[name], graph[name] if graph is not None and name in graph else None,
                _saved(name, plan.sites[name], costs))
        for name in names
    ]  # fmt: skip


def format_counts(rows: Sequence[SiteRow]) -> Markup:
    """One bar, divided by the formats of all sites, with its legend."""
    counts = _counts(rows)
    parts = [
        tag("span", class_=f"part {_class(name)}", style=f"flex-grow:{count}", title=f"{name}: {count}")
        for name, count in counts.items()
    ]
    entries = [tag("li", badge(name), f" {count} of {len(rows)} sites") for name, count in counts.items()]
    return join(
        [tag("div", *parts, class_="share", aria_hidden="true"), tag("ul", *entries, class_="legend")],
    )


def site_tree(rows: Sequence[SiteRow]) -> Markup:
    """The model by its paths; neighbours with equal formats inside are shown once."""
    root = Node()
    for row in rows:
        node = root
        for part in _parts(row.id):
            node = node.children.setdefault(part, Node())
        node.row = row
    depth = math.inf if _num_shown(root) <= OPEN_UP_TO else 1
    top = [tag("li", _leaf(WHOLE, root.row))] if root.row else []
    return tag("ul", *top, *(_branch(*part, depth) for part in _merged(root)), class_="tree")


def site_table(rows: Sequence[SiteRow]) -> Markup:
    """All sites with their reasons; a script makes it sort and filter."""
    timed = any(row.saved is not None for row in rows)
    head = ["Site", "Format", *(["Saved"] if timed else []), "Why"]
    saved = (
        "Saved is the time against FP32, forward and backward, of the site measured alone; what a reason says of time "
        "counts the casts beside the site too, which the plan has or spares."
    )
    note = saved if timed else ""
    content = table("Sites, their formats and why", head, (_cells(row, timed) for row in rows), class_="sortable sites")
    return join([content, tag("p", note, class_="note")] if note else [content])


def badge(format_name: str) -> Markup:
    """A format's name on its colour."""
    return tag("span", format_name, class_=f"badge {_class(format_name)}")


def _cells(row: SiteRow, timed: bool) -> list[str]:
    decision = row.decision
    scaling = f" {decision.scaling}" if decision.scaling else ""
    site = tag("td", tag("code", row.name), " ", tag("small", _details(row)))
    number_format = tag("td", badge(str(decision.format)), tag("small", scaling) if scaling else "")
    saved = [number_cell(ms(row.saved), row.saved)] if timed else []
    return [site, number_format, *saved, decision.why or "–"]


def _details(row: SiteRow) -> str:
    parts = [row.site.op] if row.site else []
    parts += [_HOW[row.decision.how]] if row.decision.how in _HOW else []
    if row.decision.pad:
        parts.append(f"output padded to a multiple of {row.decision.pad}")
    if row.decision.pad_in:
        parts.append(f"input padded to a multiple of {row.decision.pad_in}")
    if row.site and row.site.calls > 1:
        parts.append(f"called {row.site.calls} times")
    if row.site and row.site.location:
        parts.append(f"{row.site.location.path}:{row.site.location.line}")
    return " · ".join(parts)


def _branch(name: str, node: Node, depth: float) -> Markup:
    """One part; what holds a single part and nothing else shares its line."""
    if not node.children:
        return tag("li", _leaf(name, node.row))
    inner = _merged(node)
    if node.row is None and len(inner) == 1 and _ALIKE not in name:
        only, child = inner[0]
        return _branch(f"{name}{'' if only.startswith('#') else '.'}{only}", child, depth)
    rows = list(node.rows())
    own = [badge(str(node.row.decision.format))] if node.row else []
    counts = [tag("span", badge(label), f"×{count}", class_="count") for label, count in _counts(rows).items()]
    saved = [row.saved for row in rows if row.saved is not None]
    summary = tag("summary", *_title(name), *own, *counts, *_saving(sum(saved) if saved else None))
    return tag("li", tag("details", summary, tag("ul", *(_branch(*part, depth - 1) for part in inner)), open=depth > 0))


def _leaf(name: str, row: SiteRow | None) -> Markup:
    if row is None:
        return tag("code", name)
    padding = f" padded to a multiple of {row.decision.pad}" if row.decision.pad else ""
    number_format = tag("span", badge(str(row.decision.format)), title=row.decision.why or None)
    return join([*_title(name), number_format, tag("small", padding), *_saving(row.saved)])


def _title(name: str) -> list[str]:
    path, separator, alike = name.partition(_ALIKE)
    return [tag("code", path), " ", *([tag("small", f"({alike} ")] if separator else [])]


def _saving(saved: float | None) -> list[Markup]:
    return [tag("small", f" saves {ms(saved)}")] if saved is not None and saved > 0 else []


def _merged(node: Node) -> list[tuple[str, Node]]:
    """Children in order; numbered neighbours that are alike become one, ``0–11 (12 alike, averaged)``."""
    runs = itertools.groupby(node.children.items(), key=lambda item: (item[0].isdigit() or item[0], item[1].alike()))
    found = []
    for _, run in runs:
        names, nodes = zip(*run, strict=True)
        count = len(names)
        name = names[0] if count == 1 else f"{names[0]}–{names[-1]}{_ALIKE}{count} alike, averaged)"
        found.append((name, _mean(nodes)))
    return found


def _mean(nodes: Sequence[Node]) -> Node:
    """One part in place of several that are alike, with the mean of what each site saves."""
    if len(nodes) == 1:
        return nodes[0]
    merged = Node()
    if nodes[0].row:
        saved = [node.row.saved for node in nodes if node.row and node.row.saved is not None]
        merged.row = dataclasses.replace(nodes[0].row, saved=statistics.fmean(saved) if saved else None)
    merged.children = {name: _mean([node.children[name] for node in nodes]) for name in nodes[0].children}
    return merged


def _num_shown(node: Node) -> int:
    return sum(1 + _num_shown(child) for _, child in _merged(node))


def _parts(site_id: str) -> list[str]:
    """``blocks.0.attn#softmax.0`` as blocks, 0, attn, #softmax.0."""
    path, separator, op = site_id.partition("#")
    return [part for part in path.split(".") if part] + ([f"#{op}"] if separator else [])


def _counts(rows: Sequence[SiteRow]) -> dict[str, int]:
    """Sites by format, the lowest number of bits first."""
    counts: Counter[Format] = Counter(row.decision.format for row in rows)
    return {str(f): counts[f] for f in sorted(counts, key=lambda f: (f.bits, f.label))}


def _class(format_name: str) -> str:
    return f"format-{re.sub('[^a-z0-9]', '-', format_name)}"


def _saved(name: str, decision: SitePlan, costs: CostTable | None) -> float | None:
    measured: Mapping[Choice, object] = costs.sites.get(name, {}) if costs else {}
    choice = decision.choice
    if costs is None or choice == FP32 or FP32 not in measured or choice not in measured:
        return None
    saved = costs.site(name, FP32).ms - costs.site(name, choice).ms
    return saved if math.isfinite(saved) else None
