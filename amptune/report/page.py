"""Self-contained HTML pages: elements that escape what they hold, tables, and the shell with its style and script."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import math
from collections.abc import Iterable, Sequence

VOID = frozenset({"br", "input", "meta"})


class Markup(str):
    """Text that is HTML already; any other string is escaped before it becomes part of a page."""

    __slots__ = ()


def tag(name: str, /, *content: str, **attributes: str | float | bool | None) -> Markup:
    """One element. Content that is not Markup is escaped, and so is every attribute.

    An attribute that is ``True`` is written bare, one that is ``None`` or ``False`` is left out. ``class_`` is class,
    ``data_sort`` is data-sort.
    """
    opening = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}>"
    if name in VOID:
        return Markup(opening)
    return Markup(f"{opening}{join(content)}</{name}>")


def join(parts: Iterable[str]) -> Markup:
    """Several pieces one after the other, escaped where they are not Markup."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(part) for part in parts))


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    class_: str | None = None,
    example: str | None = None,
) -> Markup:
    """A table in a box that scrolls sideways on a narrow screen. A row is its cells; one that is a ``<td>`` stays.

    ``example`` is what the box that filters a sortable table shows while it is empty.
    """
    content = list(rows)
    body = [tag("tr", *(cell if _is_cell(cell) else tag("td", cell) for cell in row)) for row in content]
    first = content[0] if content else [""] * len(head)
    classes = ["number" if cell.startswith('<td class="number"') else None for cell in first]
    columns = zip(head, [*classes, *[None] * (len(head) - len(classes))], strict=True)
    header = tag("thead", tag("tr", *(tag("th", title, scope="col", class_=name) for title, name in columns)))
    whole = tag("table", tag("caption", caption), header, tag("tbody", *body), class_=class_, data_example=example)
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)


def number_cell(text: str, value: float | None = None) -> Markup:
    """A right-aligned cell that sorts by ``value``; what has none sorts last."""
    sort = "" if value is None or not math.isfinite(value) else repr(float(value))
    return tag("td", text, class_="number", data_sort=sort)


def section(title: str, name: str, *content: str) -> Markup:
    """A titled part of the page that can be linked to as ``#name``."""
    return tag("section", tag("h2", title, id=name), *content, aria_labelledby=name)


def folded(summary: str, *content: str, open_: bool = False) -> Markup:
    """Content behind a line that opens and closes it, without a script."""
    return tag("details", tag("summary", summary), *content, open=open_)


def page(title: str, *content: str) -> str:
    """The whole document: works offline, and its policy lets no other script run and nothing be fetched."""
    script = Markup(_asset("page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(_asset("page.css"))),
    )
    body = tag("body", tag("main", *content), tag("script", script))
    text = f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"
    # A path that is not valid UTF-8 reaches us as lone surrogates, which no file can hold.
    return text.encode("utf-8", "replace").decode()


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {name}="{html.escape(text)}"'


def _is_cell(cell: str) -> bool:
    return isinstance(cell, Markup) and cell.startswith(("<td", "<th"))


def _asset(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
