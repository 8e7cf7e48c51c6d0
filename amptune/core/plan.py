"""The Plan: which format each site computes in, and the JSON file that carries it. Never pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from amptune.core.choice import SCALINGS, Choice
from amptune.core.formats import Format
from amptune.core.planfields import Fields
from amptune.errors import PlanError

PLAN_VERSION = 1
HOW = ("swap", "follow", "source", "autocast", "own", "read", "late")
HELD = ("own", "read", "late")
"""Of parameters and buffers that a module holds beside its layers."""
BF16_MASTER = "bf16-master"
PARAMS = ("bf16", BF16_MASTER)
"""Parameters in BF16 that are stepped themselves, or by way of FP32 master copies in the optimizer."""
_FIELDS = (
    "version", "tool", "model", "measured_on", "flags", "loss", "output_format", "sites", "scaler", "params", "compile",
)  # fmt: skip
_FIELDS_OF = {
    "model": ("target", "source_sha256", "fingerprint"),
    "flags": ("tf32", "channels_last"),
    "loss": ("format", "compile"),
}
INDUCTOR = "inductor"
"""torch.compile's own backend."""
_NO_PARTS: dict[str, Any] = {"parts": [], "backend": INDUCTOR}
_FIELDS_OF_SITE = ("format", "scaling", "pad", "pad_in", "strided", "how", "why")


@dataclasses.dataclass(frozen=True)
class SitePlan:
    """The decision for one site.

    Attributes:
        format: number format of its matrix products or arithmetic.
        scaling: FP8 only: how tensors are scaled.
        pad: multiple to which output features are padded at compute time; 0 = not padded.
        pad_in: the same for input features.
        strided: leave the padded output uncopied, because the code that follows takes it.
        how: how it is put in force: ``swap`` (module class swapped), ``follow`` (a functional op that runs in the
            format of its inputs), ``source`` (the source line pins it), ``autocast`` (a local autocast region),
            ``own`` (a parameter or buffer that a module holds beside its layers, which reads as a cast of itself),
            ``read`` (one of a layer that the forward around it reads past the layer, and there as a cast),
            ``late`` (the same, where the forward computes with it first: in FP32, and what comes of it is cast where
            it meets 16 bits).
        why: one sentence for the user.
    """

    format: Format
    scaling: str | None = None
    pad: int = 0
    how: Literal["swap", "follow", "source", "autocast", "own", "read", "late"] = "swap"
    why: str = ""
    pad_in: int = 0
    strided: bool = False

    @property
    def choice(self) -> Choice:
        """Format and scaling as one value."""
        return Choice(self.format, self.scaling)

    def to_json(self) -> dict[str, Any]:
        """The site in plan.json; what is rare is there only where it says something."""
        data: dict[str, Any] = {"format": str(self.format), "scaling": self.scaling, "pad": self.pad, "how": self.how}
        if self.pad_in:
            data["pad_in"] = self.pad_in
        if self.strided:
            data["strided"] = True
        return data | {"why": self.why}


@dataclasses.dataclass(frozen=True)
class ScalerConfig:
    """Keyword arguments of ``torch.amp.GradScaler``; its defaults here are torch's own."""

    enabled: bool = False
    init_scale: float = 65536.0
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000

    def to_json(self) -> dict[str, Any]:
        """The keyword arguments as a dict."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Formats of all sites, and the execution choices that belong to precision.

    Attributes:
        sites: site id -> decision; a site that is absent stays as the user wrote it.
        tf32: let what stays FP32 use TF32 in matrix products and convolutions.
        channels_last: convolution weights in channels_last memory format.
        loss_format: format that the loss is computed in; ``None`` leaves it as the output comes.
        loss_compile: run the loss alone under torch.compile.
        output_format: floating outputs of the model are cast to it; ``None`` leaves them.
        params: one of PARAMS; ``None`` leaves the parameters in their dtype.
        compile_parts: paths of the modules that run under torch.compile, each by itself, and all else in eager mode;
            empty leaves compiling to the user.
        backend: of torch.compile, for these parts and the loss.
        scaler: loss scaling of the training loop.
        target, source_sha256, fingerprint: the model it is for.
        measured_on: gpu, capability, torch, driver, mode, and inputs: shapes of the batch.
    """

    sites: Mapping[str, SitePlan] = dataclasses.field(default_factory=dict, hash=False)
    tf32: bool = False
    channels_last: bool = False
    loss_format: Format | None = Format.FP32
    loss_compile: bool = False
    output_format: Format | None = None
    scaler: ScalerConfig = ScalerConfig()
    target: str = ""
    source_sha256: str = ""
    fingerprint: str = ""
    measured_on: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    params: str | None = None
    compile_parts: tuple[str, ...] = ()
    backend: str = INDUCTOR

    @property
    def uses_fp16(self) -> bool:
        """Whether any site computes in FP16, so that small gradients need a loss scale."""
        return any(site.format is Format.FP16 for site in self.sites.values())

    @property
    def compiles(self) -> bool:
        """Whether it puts something under torch.compile itself."""
        return self.loss_compile or bool(self.compile_parts)

    @property
    def is_fp32(self) -> bool:
        """Whether everything is computed in FP32 as it is written, or in TF32."""
        as_written = (
            site.format is Format.FP32 and not (site.pad or site.pad_in or site.strided) for site in self.sites.values()
        )
        beside = self.channels_last or self.loss_compile or self.params or self.output_format or self.compile_parts
        return not beside and self.loss_format in (None, Format.FP32) and all(as_written)

    def behaviour_hash(self) -> str:
        """Hash of what the plan does (not of why, or where it was measured): equal plans are measured once."""
        sites = {
            k: (str(v.format), v.scaling, v.pad, v.how, v.pad_in, v.strided) for k, v in sorted(self.sites.items())
        }
        flags = [self.tf32, self.channels_last, str(self.loss_format), self.loss_compile, str(self.output_format)]
        flags += [self.params] if self.params else []
        flags += [self.backend, *self.compile_parts] if self.compiles else []
        text = json.dumps([sites, flags, self.scaler.to_json()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self, tool: str) -> dict[str, Any]:
        """The content of plan.json, schema version 1; ``tool`` is "amptune <version>"."""
        data: dict[str, Any] = {
            "version": PLAN_VERSION,
            "tool": tool,
            "model": {
                "target": self.target,
                "source_sha256": self.source_sha256,
                "fingerprint": self.fingerprint,
            },
            "measured_on": dict(self.measured_on),
            "flags": {"tf32": self.tf32, "channels_last": self.channels_last},
            "loss": {"format": str(self.loss_format) if self.loss_format else None, "compile": self.loss_compile},
            "output_format": str(self.output_format) if self.output_format else None,
            "sites": {name: site.to_json() for name, site in self.sites.items()},
            "scaler": self.scaler.to_json(),
        }
        compiling = {"parts": [*self.compile_parts], "backend": self.backend}
        is_told = bool(self.compile_parts) or (self.loss_compile and self.backend != INDUCTOR)
        return data | ({"params": self.params} if self.params else {}) | ({"compile": compiling} if is_told else {})

    @classmethod
    def from_json(cls, data: object, where: str = "plan.json") -> Plan:
        """Read plan.json's content.

        Raises:
            PlanError: a newer schema, a missing or wrong field, an unknown format; the message names ``where`` and
                the field.
        """
        reader = Fields(data, where)
        version = reader.get("version", int)
        if version < 1:
            raise PlanError(f"{where}: schema version {version} does not exist; this amptune reads {PLAN_VERSION}")
        if version > PLAN_VERSION:
            raise PlanError(
                f"{where}: schema version {version} is newer than this amptune reads ({PLAN_VERSION})",
                hint="upgrade amptune, or run the search again with this version",
            )
        reader.know(_FIELDS)
        model, flags, loss = (
            Fields(reader.get(key, dict), f"{where}: {key}").know(known) for key, known in _FIELDS_OF.items()
        )
        compiling = Fields(reader.data.get("compile", _NO_PARTS), f"{where}: compile").know(_NO_PARTS)
        return cls(
            sites={k: _site(k, entry, f"{where}: sites[{k!r}]") for k, entry in reader.get("sites", dict).items()},
            tf32=flags.get("tf32", bool),
            channels_last=flags.get("channels_last", bool),
            loss_format=loss.dtype("format"),
            loss_compile=loss.get("compile", bool),
            output_format=reader.dtype("output_format"),
            scaler=_scaler(reader.get("scaler", dict), f"{where}: scaler"),
            target=model.get("target", str),
            source_sha256=model.get("source_sha256", str),
            fingerprint=model.get("fingerprint", str),
            measured_on=reader.get("measured_on", dict),
            params=_params(reader),
            compile_parts=_parts(compiling),
            backend=compiling.get("backend", str),
        )


def elsewhere(measured_on: Mapping[str, Any], here: Mapping[str, str]) -> str | None:
    """A sentence where a plan was measured on another GPU or torch than ``here`` has; None where nothing differs.

    What ``here`` does not name is not compared.
    """
    pairs = [(key, word) for key, word in (("gpu", ""), ("torch", "torch ")) if measured_on.get(key) and here.get(key)]
    differing = [(key, word) for key, word in pairs if not _is_same(str(measured_on[key]), here[key])]
    if not differing:
        return None
    old = " and ".join(f"{word}{measured_on[key]}" for key, word in differing)
    new = " and ".join(f"{word}{here[key]}" for key, word in differing)
    return f"the plan was measured on {old}, this is {new}: it may not be the fastest here; amptune tune measures anew"


def _is_same(one: str, other: str) -> bool:
    """Whether two versions agree; the build label after + is often left out of a package's own version."""
    if ("+" in one) != ("+" in other):
        one, other = one.partition("+")[0], other.partition("+")[0]
    return one == other


def _params(reader: Fields) -> str | None:
    value = reader.data.get("params")
    if value is not None and value not in PARAMS:
        raise PlanError(f"{reader.where}: field 'params' is {value!r}, not one of {', '.join(PARAMS)}")
    return None if value is None else str(value)


def _parts(reader: Fields) -> tuple[str, ...]:
    parts = reader.get("parts", list)
    if not all(isinstance(part, str) and part for part in parts):
        raise PlanError(f"{reader.where}: field 'parts' must be a list of module paths")
    return tuple(parts)


def _site(name: str, entry: object, where: str) -> SitePlan:
    reader = Fields(entry, where).know(_FIELDS_OF_SITE)
    number_format = reader.format("format")
    if number_format in (None, Format.TF32, Format.FP8_E5M2):
        raise PlanError(f"{where}: field 'format' must be one of fp32, bf16, fp16, fp8_e4m3")
    scaling, pad, how = reader.data.get("scaling"), reader.data.get("pad", 0), reader.data.get("how", "swap")
    if scaling is not None and scaling not in SCALINGS:
        raise PlanError(f"{where}: scaling {scaling!r} is not one of {', '.join(SCALINGS)}")
    if number_format.is_fp8 and scaling is None:
        raise PlanError(f"{where}: an FP8 site needs a scaling: one of {', '.join(SCALINGS)}")
    if scaling is not None and not number_format.is_fp8:
        raise PlanError(f"{where}: scaling {scaling!r} is for FP8, and the format is {number_format}")
    pad_in, strided = reader.data.get("pad_in", 0), reader.data.get("strided", False)
    for key, value in (("pad", pad), ("pad_in", pad_in)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise PlanError(f"{where}: {key} {value!r} must be a multiple such as 8 or 64, or 0 for none")
    if not isinstance(strided, bool):
        raise PlanError(f"{where}: field 'strided' is {strided!r}, expected bool")
    if how not in HOW:
        raise PlanError(f"{where}: how {how!r} is not one of {', '.join(HOW)}")
    _check_how(name, number_format, how, where)
    return SitePlan(number_format, scaling, pad, how, str(reader.data.get("why", "")), pad_in, strided)


def _check_how(name: str, number_format: Format, how: str, where: str) -> None:
    """Raise PlanError for a decision that could not be put in force, and would be left out in silence."""
    if "#" not in name:
        if how in ("follow", "source"):
            raise PlanError(f"{where}: how {how!r} is for an operation that stands in a forward, and this is a module",
                            hint="leave 'how' out, or the whole site to have it as it is")  # fmt: skip
        return
    if how not in ("follow", "source", "autocast"):
        raise PlanError(f"{where}: how {how!r} is for a module, and this is an operation that stands in a forward",
                        hint="'how': 'source' computes it in FP32; without a site it follows its inputs")  # fmt: skip
    if how == "source" and number_format is not Format.FP32:
        raise PlanError(f"{where}: 'how': 'source' computes an operation in fp32, and the format is {number_format}",
                        hint="leave the site out, and the operation follows its inputs")  # fmt: skip


def _scaler(data: object, where: str) -> ScalerConfig:
    reader = Fields(data, where).know(ScalerConfig.__dataclass_fields__)
    config = ScalerConfig(
        enabled=reader.get("enabled", bool),
        init_scale=float(reader.get("init_scale", float)),
        growth_factor=float(reader.get("growth_factor", float)),
        backoff_factor=float(reader.get("backoff_factor", float)),
        growth_interval=reader.get("growth_interval", int),
    )
    factors = (config.init_scale, config.growth_factor, config.backoff_factor)
    if not all(map(math.isfinite, factors)) or config.growth_interval < 1:
        raise PlanError(f"{where}: needs numbers that are finite, and growth_interval of a step or more")
    if config.growth_factor <= 1 or not 0 < config.backoff_factor < 1 or config.init_scale <= 0:
        raise PlanError(f"{where}: needs growth_factor > 1, 0 < backoff_factor < 1 and init_scale > 0")
    return config
