"""Candidates: the stock recipes that users pick today, and plans; both run through the same training step."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from amptune.core.formats import Format
from amptune.core.plan import PARAMS, Plan, ScalerConfig
from amptune.runtime import set_backend_flags
from amptune.tune.running.device import Device
from amptune.tune.running.float8 import stock_scalings

NO_SCALER = ScalerConfig()


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to train the model: a stock recipe (``plan`` is None) or a plan.

    Attributes:
        name: stock recipe name, or ``plan``.
        plan: formats per site; ``None`` runs the model as the user wrote it.
        autocast: format of a torch.autocast region around forward and loss; ``None`` for no region.
        float8: torchao's recipe, ``tensorwise`` or ``rowwise``, that its linears are converted with; ``None`` for none.
        tf32: TF32 for what stays in FP32: a recipe in fewer bits has it too, or a plan beside it, which may allow it,
            would gain what one line gives to anybody.
        scaler: loss scaling.
        params: one of ``core.plan.PARAMS``; None leaves the parameters in their dtype.
        loss_compile: run the loss of a stock recipe under torch.compile; a plan says so itself.
        eager: in compile mode, leave the model in eager mode.
    """

    name: str
    plan: Plan | None = None
    autocast: Format | None = None
    tf32: bool = False
    scaler: ScalerConfig = NO_SCALER
    loss_compile: bool = False
    float8: str | None = None
    params: str | None = None
    eager: bool = False

    @property
    def low(self) -> Format | None:
        """The 16-bit format that a stock recipe computes in."""
        return Format.BF16 if self.params else self.autocast

    @property
    def key(self) -> str:
        """Equal for candidates that do the same."""
        return self.plan.behaviour_hash() if self.plan else f"stock:{self.name}"

    @property
    def is_stock(self) -> bool:
        """Whether this is a recipe that needs no amptune."""
        return self.plan is None

    @property
    def has_fp8(self) -> bool:
        """Whether something is computed in FP8."""
        sites = self.plan.sites.values() if self.plan else ()
        return self.float8 is not None or any(site.format.is_fp8 for site in sites)

    @property
    def in_parts(self) -> bool:
        """Whether its plan has parts of the model compiled, each by itself."""
        return self.plan is not None and bool(self.plan.compile_parts)

    def in_eager(self) -> Candidate:
        """The same in eager mode, whatever the mode is."""
        return dataclasses.replace(self.as_written(), eager=True)

    def as_written(self) -> Candidate:
        """The same with no part of the model compiled."""
        if self.plan is None or not self.plan.compile_parts:
            return self
        return dataclasses.replace(self, plan=dataclasses.replace(self.plan, compile_parts=()))

    @property
    def compiles_loss(self) -> bool:
        """Whether its loss is compiled by itself, in eager mode too."""
        return self.loss_compile or (self.plan is not None and self.plan.loss_compile)


def plan_candidate(plan: Plan) -> Candidate:
    """The candidate that trains with ``plan``."""
    return Candidate("plan", plan, None, plan.tf32, plan.scaler, params=plan.params)


def stock_candidates(device: Device, model: nn.Module, params: str | None = None) -> list[Candidate]:
    """The stock recipes that this device can run for a model, the FP32 reference first.

    ``params``: "bf16" for the recipes with parameters in BF16 as well, which are there only when asked for.
    """
    recipes, tf32 = [Candidate("fp32")], device.has_tf32()
    if tf32:
        recipes.append(Candidate("tf32", tf32=True))
    formats, scaler = device.formats(), ScalerConfig(enabled=True)
    if Format.BF16 in formats:
        recipes.append(Candidate("autocast-bf16", autocast=Format.BF16, tf32=tf32))
    if Format.FP16 in formats:
        recipes.append(Candidate("autocast-fp16", autocast=Format.FP16, tf32=tf32, scaler=scaler))
    recipes += [float8_candidate(scaling, tf32=tf32) for scaling in stock_scalings(device, model)]
    recipes += [params_candidate(name, tf32=tf32) for name in PARAMS] if params else []
    return recipes


def float8_candidate(scaling: str, *, tf32: bool = False) -> Candidate:
    """torchao's float8 training over BF16 autocast, which is what its users run."""
    return Candidate(f"fp8-{scaling}", autocast=Format.BF16, tf32=tf32, float8=scaling)


def params_candidate(params: str, *, tf32: bool = False) -> Candidate:
    """The model cast to BF16; the user's optimizer steps on these parameters or on FP32 copies."""
    return Candidate(f"params-{params}", tf32=tf32, params=params)


def with_scale(candidate: Candidate, loss_scale: float) -> Candidate:
    """The candidate with a scaler that starts at a scale."""
    return dataclasses.replace(candidate, scaler=dataclasses.replace(candidate.scaler, init_scale=loss_scale))


@contextlib.contextmanager
def backend_flags(tf32: bool) -> Iterator[None]:
    """TF32 on or off for matrix products and convolutions, both ways back afterwards.

    cuDNN allows TF32 by default, so the FP32 reference has to switch it off.
    """
    restore = set_backend_flags(tf32=tf32)
    try:
        yield
    finally:
        restore()


def autocast_region(candidate: Candidate, device: Device) -> contextlib.AbstractContextManager[object]:
    """The autocast region of a recipe, or nothing."""
    if candidate.autocast is None:
        return contextlib.nullcontext()
    if candidate.plan is not None:
        # Said for users who leave their region around a planned model; here it is meant.
        warnings.filterwarnings("ignore", message="torch.autocast is active around a model")
    return torch.autocast(device.torch.type, dtype=getattr(torch, candidate.autocast.torch_name))
