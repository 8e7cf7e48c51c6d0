"""Which axis of a result an axis of an operand is, through the views between."""

from __future__ import annotations

from amptune.core.graph import Site


def axis_before(site: Site, position: int, made: Site, axis: int) -> int | None:
    """The axis of what a site made that an axis of an input is, whole or in part, both counted from the last; ``None``
    where the views between leave no such axis, or where that is not known.

    Args:
        site: which reads the input.
        position: index of the input.
        made: the site that made it.
        axis: counted from the last.
    """
    if position not in (site.attrs.get("views") or {}):
        same = made.outputs[0].shape == site.inputs[position].shape
        return axis if same and axis >= -len(site.inputs[position].shape) else None
    axes: tuple[int | None, ...] = (site.attrs.get("axes") or {}).get(position, ())
    return axes[axis] if -len(axes) <= axis < 0 else None
