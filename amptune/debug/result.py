"""What a debug run found, and its JSON."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from amptune.core.finding import Location
from amptune.debug.cures import Cure
from amptune.debug.diagnose import Cause, Culprit
from amptune.debug.record import Op

Verdict = Literal["clean", "precision", "not-precision"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One culprit with its place and its cures.

    Attributes:
        culprit: what went wrong, see ``Culprit``.
        step: the training step, from 0.
        scale: the loss scale then.
        site: site id of what is to change, as in a plan; the module's path where no site is known.
        cures: what was tried and works, the smallest first.
        absorbed: whether the loss and all gradients stayed finite.
        also: paths of other modules in which the same line is to change.
        remark: what another device would do there.
    """

    culprit: Culprit
    step: int
    scale: float
    site: str
    cures: tuple[Cure, ...]
    absorbed: bool = False
    also: tuple[str, ...] = ()
    remark: str = ""

    def to_json(self) -> dict[str, Any]:
        """The form in the JSON report."""
        culprit = self.culprit
        return {
            "kind": culprit.kind, "phase": culprit.op.phase, "step": self.step, "loss_scale": self.scale,
            "op": culprit.op.op, "module": culprit.op.path, "site": self.site, **place_json(culprit.op),
            "message": culprit.words, "absorbed": self.absorbed,
            "inputs": [m.to_json() for m in culprit.op.inputs],
            "outputs": [m.to_json() for m in culprit.op.outputs],
            "fp32_outputs": [m.to_json() for m in culprit.twin.outputs] if culprit.twin else None,
            "cause": _cause_json(culprit.cause) if culprit.cause else None,
            "cures": [_cure_json(cure) for cure in self.cures],
            "also_in": list(self.also), "remark": self.remark,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Extreme:
    """The largest magnitude of a kind, and where it was seen."""

    value: float
    op: Op
    step: int

    def to_json(self) -> dict[str, Any]:
        """The form in the JSON report."""
        return {"value": self.value, "op": self.op.op, "module": self.op.path, "step": self.step, **place_json(self.op)}


@dataclasses.dataclass
class LayerLoss:
    """What one layer loses to underflow, over the steps that were looked at.

    Counts are of elements that are not zero in FP32; ``norm`` is the largest share of a tensor's norm that was lost.
    """

    path: str
    activations: int = 0
    activations_lost: int = 0
    activations_subnormal: int = 0
    activation_norm: float = 0.0
    gradients: int = 0
    gradients_lost: int = 0
    gradients_subnormal: int = 0
    gradient_norm: float = 0.0
    largest_activation: float = 0.0
    largest_gradient: float = 0.0

    @property
    def activation_share(self) -> float:
        """Share of activations that become zero."""
        return self.activations_lost / self.activations if self.activations else 0.0

    @property
    def gradient_share(self) -> float:
        """Share of gradients that become zero."""
        return self.gradients_lost / self.gradients if self.gradients else 0.0

    def to_json(self) -> dict[str, Any]:
        """The form in the JSON report."""
        return {
            "module": self.path,
            "activations": {"underflow": self.activation_share, "norm_lost": self.activation_norm,
                            "subnormal": self.activations_subnormal / max(1, self.activations),
                            "largest": self.largest_activation},
            "gradients": {"underflow": self.gradient_share, "norm_lost": self.gradient_norm,
                          "subnormal": self.gradients_subnormal / max(1, self.gradients),
                          "largest": self.largest_gradient},
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Underfed:
    """A layer whose gradient underflows, and in ``also`` those of which the same line is true."""

    layer: LayerLoss
    op: Op | None
    words: str
    cure: str
    verified: bool
    also: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The form in the JSON report."""
        place = place_json(self.op) if self.op else {"path": None, "line": None, "column": None}
        return {"kind": "underflow", "phase": "backward", "module": self.layer.path, "site": self.layer.path, **place,
                "message": self.words, "cures": [{"message": self.cure, "verified": self.verified}],
                "also_in": list(self.also)}  # fmt: skip


@dataclasses.dataclass
class DebugResult:
    """All that a run found.

    Attributes:
        target, dtype, device: what was run, in which format, where.
        steps: training steps that were run; ``asked`` how many were asked for.
        scaler: whether the loss was scaled, the scale at the end and how many steps were skipped.
        findings: culprits in the order in which they came up.
        underfed: layers whose gradients underflow.
        margins: largest activation and gradient.
        layers: underflow per layer.
        fp8: saturated and underflowed shares per linear, for FP8.
        notes: what was assumed or emulated.
        limit: the format's largest number.
        optimizer: what it made of a parameter, where it made one not finite.
        unexplained: whether a step failed for which no op can be named.
        verified_steps: how many steps ran with all cures in force; None without cures, or where a step failed still.
    """

    target: str
    dtype: str
    device: str
    asked: int
    steps: int = 0
    scaler: dict[str, Any] = dataclasses.field(default_factory=dict)
    findings: list[Finding] = dataclasses.field(default_factory=list)
    underfed: list[Underfed] = dataclasses.field(default_factory=list)
    margins: dict[str, Extreme] = dataclasses.field(default_factory=dict)
    layers: list[LayerLoss] = dataclasses.field(default_factory=list)
    fp8: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    limit: float = 0.0
    unexplained: bool = False
    optimizer: dict[str, Any] | None = None
    verified_steps: int | None = None

    @property
    def verdict(self) -> Verdict:
        """Clean, or what kind of failure it is."""
        if any(finding.culprit.kind == "not-precision" for finding in self.findings):
            return "not-precision"
        if self.optimizer and not self.optimizer["low"]:
            return "not-precision"
        return "precision" if self.findings or self.underfed or self.unexplained or self.optimizer else "clean"

    def to_json(self, tool: str) -> dict[str, Any]:
        """The JSON report, schema version 1."""
        return {
            "version": 1, "tool": tool, "target": self.target, "dtype": self.dtype, "device": self.device,
            "verdict": self.verdict, "steps": {"asked": self.asked, "run": self.steps,
                                               "with_cures": self.verified_steps},
            "scaler": self.scaler, "optimizer": self.optimizer,
            "findings": [*(found.to_json() for found in self.findings), *(found.to_json() for found in self.underfed)],
            "margins": {"limit": self.limit, **{name: found.to_json() for name, found in self.margins.items()}},
            "layers": [layer.to_json() for layer in self.layers],
            "fp8": self.fp8, "notes": self.notes,
        }  # fmt: skip


def location_of(op: Op) -> Location | None:
    """The line that the user can read."""
    position = op.place.reader or op.place.origin
    return position.location() if position else None


def place_json(op: Op) -> dict[str, Any]:
    """Path, line and column of an op; null where they are not known."""
    place = location_of(op)
    if place is None:
        return {"path": None, "line": None, "column": None}
    return {"path": place.path, "line": place.line, "column": place.column}


def _cause_json(cause: Cause) -> dict[str, Any]:
    return {"op": cause.op.op, "module": cause.op.path, **place_json(cause.op), "message": cause.words}


def _cure_json(cure: Cure) -> dict[str, Any]:
    return {"kind": cure.kind, "message": cure.words, "verified": True, "whole_step": cure.complete,
            "ops": [{"op": spot.op, "module": spot.module} for spot in cure.spots]}  # fmt: skip


__all__ = ["Culprit", "DebugResult", "Extreme", "Finding", "LayerLoss", "Underfed", "location_of", "place_json"]
