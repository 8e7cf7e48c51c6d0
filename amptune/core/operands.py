"""The positional operands of a site: which of its inputs each of them is."""

from __future__ import annotations

from amptune.core.graph import Site

COPIES_ONE = frozenset(
    {
        *("gather", "index", "index_select", "masked_select", "flip", "roll", "repeat", "tile", "repeat_interleave"),
        *("clone", "contiguous", "copy", "unfold", "take_along_dim", "rot90", "alias", "identity"),
    }
)
"""Ops whose result holds numbers of their first operand and no others."""


def arity(site: Site) -> int:
    """Number of positional operands."""
    layout = site.attrs.get("operands")
    if layout is not None:
        return len(layout)
    found = len(site.inputs) + len(site.params) + len(site.attrs.get("scalars") or {})
    return max(found, 2) if site.op in ("mul", "add", "sub", "div") else found


def input_of(site: Site, index: int) -> int | None:
    """The position in ``Site.inputs`` of a positional operand; ``None`` for a number or a parameter."""
    layout = site.attrs.get("operands")
    if layout is not None:
        return layout[index] if index < len(layout) else None
    scalars = site.attrs.get("scalars") or {}
    if site.op in ("mul", "add", "sub", "div") and len(site.inputs) == 1 and not scalars and not site.params:
        return 0 if index < 2 else None  # an op of two operands with one tensor: x * x
    position = index - sum(1 for place in scalars if place < index)
    return position if index not in scalars and position < len(site.inputs) else None


def written_into(site: Site, position: int) -> tuple[str, ...]:
    """The sites that wrote into parts of an input after it was made; an empty name for a writer that is no site."""
    found: tuple[str, ...] = (site.attrs.get("written") or {}).get(position, ())
    return found


def passed_on(site: Site, position: int) -> tuple[str, ...]:
    """The dtypes that change numbers to which an input is cast on its way, in order."""
    found: tuple[str, ...] = (site.attrs.get("passed") or {}).get(position, ())
    return found


def ways_on(site: Site, position: int) -> tuple[tuple[str, ...], ...]:
    """The same for each way on which numbers of an input may have come: of other calls, and of what was written into it
    before a cast or after."""
    others: tuple[tuple[str, ...], ...] = (site.attrs.get("passed_too") or {}).get(position, ())
    own = passed_on(site, position)
    return (own, *others) if not own or not written_into(site, position) else (own, (), *others)


def is_altered(site: Site, position: int) -> bool:
    """Whether an input is not what one site made: others wrote into it, or calls of the site read other parts of it."""
    return bool(written_into(site, position)) or position in site.attrs.get("varied", ())
