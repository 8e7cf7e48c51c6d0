"""The model as a tree, with the time that each part takes and its risk in each format as a heat map."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from amptune.report.analyze_data import PageData, PageSite, Risk
from amptune.report.page import Markup, tag
from amptune.report.svg import legend
from amptune.report.tune_data import ms

OPEN_UP_TO = 60
"""A tree with more rows than this starts with its inner parts closed."""
STRONGEST = 55
"""Percent of the heat colour in the cell that takes the most time: words stay readable on it."""


class Node:
    """A part of the model: its children by name, its site where it is one, and how many like it the line stands for."""

    def __init__(self) -> None:
        self.children: dict[str, Node] = {}
        self.site: PageSite | None = None
        self.count = 1

    def sites(self) -> Iterator[PageSite]:
        """All sites in it, itself first."""
        if self.site is not None:
            yield self.site
        for child in self.children.values():
            yield from child.sites()

    def alike(self) -> object:
        """Equal for parts of the same shape, ops and risks."""
        own = None
        if self.site is not None:
            risks = tuple((name, risk) for name, (risk, _) in self.site.risks.items())
            own = (self.site.op, self.site.shape, risks)
        return own, tuple((name, child.alike()) for name, child in self.children.items())


@dataclasses.dataclass(frozen=True)
class _Heat:
    """How a row's cells are made: the recipes of its times, the step that they are a share of, and the formats."""

    recipes: tuple[str, ...]
    formats: tuple[str, ...]
    step: float

    def cells(self, sites: Sequence[PageSite]) -> Markup:
        """The times and risks of a part, by its sites."""
        times = (self._time(recipe, sites) for recipe in self.recipes)
        risks = (_risk_cell(name, sites) for name in self.formats)
        return tag("span", *times, *risks, class_="heat")

    def _time(self, recipe: str, sites: Sequence[PageSite]) -> Markup:
        spent = sum(site.ms(recipe) for site in sites)
        share = spent / self.step if self.step else 0.0
        strength = STRONGEST * min(1.0, share) ** 0.5  # square root: parts of a few percent still differ to the eye
        title = f"{recipe}: {ms(spent)} a step, {share:.1%} of the FP32 sites"
        return tag("span", _short(spent), class_="cell time", style=f"--heat:{strength:.0f}%", title=title)


def model_tree(data: PageData) -> Markup:
    """The model by its paths; numbered neighbours that are alike share a line, with their times added up."""
    root = Node()
    for site in data.sites:
        node = root
        for part in parts_of(site.id):
            node = node.children.setdefault(part, Node())
        node.site = site
    if not data.sites:
        return tag("p", "The model has no site.")
    recipes = tuple(dict.fromkeys(["fp32", data.half])) if data.gpu else ()
    formats = tuple(data.sites[0].risks)
    heat = _Heat(recipes, formats, sum(site.ms("fp32") for site in data.sites))
    depth = math.inf if _num_shown(root) <= OPEN_UP_TO else 1
    heads = (
        tag("span", name.removeprefix("autocast-").partition("_")[0], class_="cell") for name in (*recipes, *formats)
    )
    head = tag("div", tag("span", "part of the model", class_="grow"), tag("span", *heads, class_="heat"),
               class_="row head", aria_hidden="true")  # fmt: skip
    whole = tag("li", tag("div", tag("strong", "the whole model", class_="grow"), heat.cells(data.sites), class_="row"))
    own = [tag("li", _row("(the model's own)", root, heat))] if root.site else []
    tree = tag("ul", whole, *own, *(_branch(*part, depth, heat) for part in _merged(root)), class_="tree map")
    return tag("div", head, tree, class_="heatmap", role="region", aria_label="Model tree", tabindex=0)


def risk_legend() -> Markup:
    """What the words in the cells of the formats mean."""
    entries = (tag("li", tag("span", risk.words, class_=f"cell {risk_class(risk)}"), risk.meaning) for risk in Risk)
    return legend(*entries)


def risk_class(risk: Risk) -> str:
    """The class that colours a cell."""
    return f"risk-{int(risk)}"


def parts_of(site_id: str) -> list[str]:
    """``blocks.0.attn#softmax.0`` as blocks, 0, attn, #softmax.0."""
    path, separator, op = site_id.partition("#")
    return [part for part in path.split(".") if part] + ([f"#{op}"] if separator else [])


def _risk_cell(name: str, sites: Sequence[PageSite]) -> Markup:
    """The worst site decides; one that is fine counts before one that is kept, so that a part shows where it runs."""
    worst, why = max((site.risks[name] for site in sites), key=lambda entry: entry[0], default=(Risk.FINE, ""))
    if worst is Risk.KEPT and any(site.risks[name][0] is Risk.FINE for site in sites):
        worst, why = Risk.FINE, ""
    return tag("span", worst.words, class_=f"cell {risk_class(worst)}", title=f"{name}: {why or worst.meaning}")


def _branch(name: str, node: Node, depth: float, heat: _Heat) -> Markup:
    """One part; what holds a single part and nothing else shares its line."""
    if not node.children:
        return tag("li", _row(name, node, heat))
    inner = _merged(node)
    if node.site is None and len(inner) == 1 and node.count == 1 and inner[0][1].count == 1:
        only, child = inner[0]
        return _branch(f"{name}{'' if only.startswith('#') else '.'}{only}", child, depth, heat)
    summary = tag("summary", _row(name, node, heat))
    inside = tag("ul", *(_branch(*part, depth - 1, heat) for part in inner))
    return tag("li", tag("details", summary, inside, open=depth > 0))


def _row(name: str, node: Node, heat: _Heat) -> Markup:
    site = node.site
    words = f" {site.op} {site.shape}" if site and not node.children else ""
    count = tag("small", f" {node.count} alike, added up") if node.count > 1 else ""
    title = tag("span", tag("code", name), tag("small", words), count, class_="grow")
    return tag("span", title, heat.cells(list(node.sites())), class_="row")


def _merged(node: Node) -> list[tuple[str, Node]]:
    """Children in order; numbered neighbours that are alike become one, ``0–11``."""
    by: Callable[[tuple[str, Node]], object] = lambda item: (item[0].isdigit() or item[0], item[1].alike())  # noqa: E731
    found = []
    for _, run in itertools.groupby(node.children.items(), key=by):
        names, nodes = zip(*run, strict=True)
        merged = _summed(nodes)
        merged.count = len(names)
        found.append((names[0] if len(names) == 1 else f"{names[0]}–{names[-1]}", merged))
    return found


def _summed(nodes: Sequence[Node]) -> Node:
    """One part in place of several that are alike, with their times added up."""
    if len(nodes) == 1:
        return nodes[0]
    merged, first = Node(), nodes[0]
    sites = [node.site for node in nodes if node.site is not None]
    if sites:
        recipes = dict.fromkeys(recipe for site in sites for recipe in site.milliseconds)
        merged.site = dataclasses.replace(
            sites[0], milliseconds={recipe: sum(site.ms(recipe) for site in sites) for recipe in recipes}
        )
    merged.children = {name: _summed([node.children[name] for node in nodes]) for name in first.children}
    return merged


def _num_shown(node: Node) -> int:
    return sum(1 + _num_shown(child) for _, child in _merged(node))


def _short(spent: float) -> str:
    """Milliseconds for a narrow cell."""
    if spent <= 0:
        return "–"
    decimals = 3 if spent < 0.1 else 2 if spent < 10 else 1 if spent < 1000 else 0
    return f"{spent:,.{decimals}f}"
