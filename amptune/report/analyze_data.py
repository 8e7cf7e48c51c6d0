"""What the page of an analysis shows, as analyze hands it over."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

from amptune.core.finding import Finding
from amptune.core.hardware import Gpu


class Risk(enum.IntEnum):
    """What becomes of a site in a format, from the best to the worst."""

    FINE = 0
    KEPT = 1
    SENSITIVE = 2
    WARNED = 3
    FAILS = 4

    @property
    def words(self) -> str:
        """What a cell says, so that nobody has to go by its colour."""
        return ("ok", "kept", "digits", "warn", "fails")[self]

    @property
    def meaning(self) -> str:
        """The same for a legend."""
        return (
            "no risk is known",
            "stays in a wider format under the recipe",
            "loses digits in this format",
            "a warning names this format",
            "an error names this format, or it has no kernel",
        )[self]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Values at a site: the range of their magnitudes.

    Attributes:
        low: smallest magnitude that is not zero, or 0 where it is not known.
        high: largest magnitude; infinite where it is not bounded.
        how: where it is from: ``bound`` (whatever the inputs and weights are), ``assumed`` (with assumed inputs and
            weights), ``observed`` (in a real forward).
    """

    low: float
    high: float
    how: str = "bound"


@dataclasses.dataclass(frozen=True)
class PageSite:
    """One site.

    Attributes:
        id: site id.
        op: name in the op table.
        family: of the op.
        shape: of its matrix product, or of its output.
        calls: how often one forward calls it.
        place: ``path:line``, or empty.
        flops: floating point operations in a step, backward included.
        intensity: FLOPs of the forward for each byte that it moves at ``compute``'s width; 0 without FLOPs.
        milliseconds: recipe (``+fixed`` included) -> predicted time in a step, on the page's first GPU.
        compute: format of its arithmetic under the page's 16-bit recipe, torch's name.
        risks: format -> (risk, why in words).
        spread: magnitudes of its values, where known.
        rules: codes of the findings at it.
    """

    id: str
    op: str
    family: str
    shape: str
    calls: int = 1
    place: str = ""
    flops: float = 0.0
    intensity: float = 0.0
    milliseconds: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    compute: str = ""
    risks: Mapping[str, tuple[Risk, str]] = dataclasses.field(default_factory=dict, hash=False)
    spread: Spread | None = None
    rules: tuple[str, ...] = ()

    def ms(self, recipe: str) -> float:
        """Predicted milliseconds under a recipe; 0 where none is."""
        return self.milliseconds.get(recipe, 0.0)


@dataclasses.dataclass(frozen=True)
class PageData:
    """All of it.

    Attributes:
        target: the model as the user named it.
        gpus: devices asked about, in order.
        gpu: the one that times of sites are predicted on; ``None`` without one that is timed.
        half: the 16-bit stock recipe of that GPU.
        mode: eager or compile.
        train: whether there is a backward.
        estimate: analyze's JSON: GPU -> recipe -> numbers.
        findings: repeated blocks as one.
        sites: in call order.
        facts: name -> value, about the capture and the predictions.
        notes: what was assumed.
        tool: name and version.
    """

    target: str
    gpus: tuple[Gpu, ...]
    gpu: Gpu | None
    half: str
    mode: str
    train: bool
    estimate: Mapping[str, Mapping[str, Mapping[str, Any]]] = dataclasses.field(hash=False)
    findings: tuple[Finding, ...]
    sites: tuple[PageSite, ...]
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()
    tool: str = "amptune"
