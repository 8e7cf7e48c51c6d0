"""What arguments and shapes of a call say: exponents, limits, orders of norms, how many numbers it folds into one."""

from __future__ import annotations

import math

from amptune.core.graph import Site


def exponent_of(site: Site) -> float | None:
    """The literal exponent of a pow site; ``None`` when it is a tensor."""
    value = site.attrs.get("exponent", (site.attrs.get("scalars") or {}).get(1))
    return float(value) if isinstance(value, (int, float)) else None


def reduced_count(site: Site) -> int:
    """How many elements a reduction folds into one; 0 where shapes do not say."""
    if not site.inputs or not site.outputs or not site.outputs[0].numel:
        return 0
    return max(site.inputs[0].numel // site.outputs[0].numel, 1)


def axis_size(site: Site) -> int:
    """Elements along the axis of an op that keeps its shape (cumsum, softmax); all of them where none is named."""
    shape = site.inputs[0].shape if site.inputs else ()
    dims = site.attrs.get("dim", -1)
    size = 1
    for dim in dims if isinstance(dims, list | tuple) else (dims,):
        if not isinstance(dim, int) or not -len(shape) <= dim < len(shape):
            return site.inputs[0].numel if site.inputs else 1
        size *= shape[dim]
    return size


def limits_of(site: Site) -> tuple[float, float]:
    """The literal limits of a clamp, infinite where there is none."""
    scalars = site.attrs.get("scalars") or {}
    low, high = site.attrs.get("min"), site.attrs.get("max")
    if low is None and high is None:
        low, high = scalars.get(1), scalars.get(2)
    return (
        float(low) if isinstance(low, (int, float)) else -math.inf,
        float(high) if isinstance(high, (int, float)) else math.inf,
    )


def norm_order(site: Site) -> float | str:
    """The p of a norm site: 2 unless it is given, infinity for the largest number, ``"fro"`` or ``"nuc"``."""
    order = site.attrs.get("p", site.attrs.get("ord", 2))
    return order if isinstance(order, (int, float, str)) else 2


def is_scaled(site: Site) -> bool:
    """Whether a sum or difference multiplies its second operand: ``torch.sub(x, y, alpha=2)``."""
    return site.attrs.get("alpha") not in (None, 1)


def factor_of_second(site: Site) -> float:
    """What a sum or difference multiplies its second operand by; 1 where nothing is given."""
    value = site.attrs.get("alpha")
    return float(value) if isinstance(value, int | float) else 1.0
