"""The verdict of a verification, as JSON and as text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from amptune.verify.judge import Gap
from amptune.verify.runs import Runs

STOPPED = {
    "steps": "all steps ran", "time": "the time was up", "data": "the batches ended",
    "worse": "the patched model's weights were worse beyond the noise twice in a row",
    "not finite": "the loss of the patched run is not finite",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was run, and what came of it.

    Attributes:
        original, patched: what was compared, by file.
        runs: the losses.
        evaluations: the user's ``evaluate`` after the runs, for both.
        device: facts of the device.
        notes: what the user should know.
    """

    original: str
    patched: str
    runs: Runs
    evaluations: dict[str, float | None]
    device: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """``as good``, ``within the noise`` (without 95 % confidence), ``worse``, ``not finite`` or ``too short``.

        Of the weights: by their loss in the original's FP32 forward, not by the loss that the patched model computes.
        """
        if self.runs.stopped == "not finite":
            return "not finite"
        gap = self.runs.gap
        if gap is None:
            return "too short"
        if gap.is_beyond:
            return "worse"
        return "as good" if gap.is_settled else "within the noise"

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the patched model."""
        return self.verdict in ("as good", "within the noise")

    def to_json(self, tool: str) -> dict[str, Any]:
        """The JSON report, schema version 1; losses are those of each step."""
        runs = self.runs
        return {
            "version": 1, "tool": tool, "original": self.original, "patched": self.patched, "verdict": self.verdict,
            "stopped": runs.stopped, "steps": len(runs.original), "seconds": runs.seconds,
            "judged_by": "loss of the weights in the original's FP32 forward",
            "gap": _gap_to_json(runs.gap), "own_gap": _gap_to_json(runs.own_gap),
            "tolerance": runs.tolerance, "evaluate": self.evaluations, "device": self.device,
            "losses": {"original": runs.original, "other_seed": runs.other_seed,
                       "patched": _finite(runs.patched), "patched_in_fp32": _finite(runs.patched_in_fp32),
                       "rounded": _finite(runs.rounded)},
            "notes": list(self.notes),
        }  # fmt: skip

    def text(self) -> str:
        """A few lines for people."""
        runs, gap = self.runs, self.runs.gap
        what = f"{self.patched} against {self.original}"
        lines = [f"{self.verdict}: {what}, {len(runs.original)} steps ({STOPPED[runs.stopped]})"]
        if gap is not None:
            lines.append(
                "judged by the loss that the weights of both have in the original's FP32 forward, on the same batches: "
                f"gap over the later half {gap.mean:+.4g} ({gap.relative:+.3%}), at 95 % between {gap.low:+.4g} "
                f"and {gap.high:+.4g}; allowed is {gap.noise:.4g}, the noise of FP32 or the tolerance"
            )
        elif self.verdict == "too short":
            lines.append("a verdict takes at least 20 steps: raise --steps or --minutes")
        if self.passed and runs.own_gap is not None and runs.own_gap.is_beyond:
            lines.append(
                f"the loss that the patched model computes itself reads {runs.own_gap.relative:+.3%} there: its "
                "outputs differ, as those in fewer bits do; its weights train as well"
            )
        if runs.original:
            lines.append(f"last loss {runs.original[-1]:.4g} original, {runs.patched[-1]:.4g} patched")
        known = {name: value for name, value in self.evaluations.items() if value is not None}
        if known:
            lines.append("evaluate: " + ", ".join(f"{value:.4g} {name}" for name, value in known.items()))
        return "\n".join(lines)


def _gap_to_json(gap: Gap | None) -> dict[str, float] | None:
    if gap is None:
        return None
    return {"mean": gap.mean, "low": gap.low, "high": gap.high, "noise": gap.noise, "relative": gap.relative}


def _finite(losses: Sequence[float]) -> list[float | None]:
    return [loss if math.isfinite(loss) else None for loss in losses]
