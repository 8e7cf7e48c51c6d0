"""Why a layer has no choice but FP32: the op that its output meets in one dtype, and the user's line that calls it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from amptune.apply import Fixing, Ties
from amptune.core.graph import INPUT


def why_fixed(ties: Ties, roles: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Site -> why it has to stay in FP32, as a sentence about it.

    Args:
        ties: what a run has shown.
        roles: name of each group of ``ties`` -> its sites.
    """
    ends: dict[str, str] = {}
    for call in ties.fixing:
        for name in call.groups:
            ends.setdefault(name, _end(call))
    reasons: dict[str, str] = {}
    for tie in ties.groups:
        if INPUT in tie:
            first = next(name for name in roles if name in tie and name in ends)
            for name in tie - {INPUT}:
                told = f"its output {ends[name]}" if name in ends else f"as {first}, whose output {ends[first]}"
                reasons |= dict.fromkeys(roles[name], told)
    return reasons


def _end(call: Fixing) -> str:
    """What becomes of an output that arrives at the call."""
    if call.error:
        return f"goes into code that does not run in 16 bits{f' ({call.line})' if call.line else ''}: {call.error}"
    op = f"{call.op} ({call.line})" if call.line else f"{call.op} of {call.path}" if call.path else call.op
    if call.has_kernel:
        return f"meets a tensor that no plan casts in {op}, which takes one dtype only"
    return f"goes into {op}, which has no 16-bit kernel"
