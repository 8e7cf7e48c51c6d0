"""DeepSpeed's JSON. It has one precision for the whole model, so the plan comes with the patched model."""

from __future__ import annotations

import json
import math
from typing import Any

from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.export.code import headline, optimizer_of, plan_notes, scaler_arguments
from amptune.export.export import Export, Lost
from amptune.export.model import ModelFile
from amptune.export.view import half_autocast, scaler_lost

LOWER_PRECISION_MODULES = ("torch.nn.Linear", "torch.nn.Conv1d", "torch.nn.Conv2d", "torch.nn.Conv3d")
"""DeepSpeed's own default: parameters of these classes are communicated in the autocast dtype."""

_PLAIN = """\
import deepspeed
import torch
{imports}
{flags}
model = {builder}()
optimizer = {optimizer}
engine, optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config="ds_config.json")
"""
_OUTSIDE = """\
def outside_autocast(model, device_type):  # the engine's float16 autocast is there for its loss scaler alone
    forward = model.forward
    def planned(*args, **kwargs):
        with torch.autocast(device_type, enabled=False):
            return forward(*args, **kwargs)
    model.forward = planned
    return model
outside_autocast(engine.module, engine.device.type)
"""
_SCALER = """\
scaler = engine.torch_autocast_z0_gradscaler or engine.optimizer.torch_autocast_gradscaler  # ZeRO 0; 1 to 3
settings = dict({arguments})
scaler.load_state_dict({{"scale": settings.pop("init_scale"), **settings, "_growth_tracker": 0}})
"""
_YOURS = (
    'Batch size, accumulation, clipping and ZeRO are yours to set ("auto" under transformers\' Trainer); the precision '
    "blocks are the plan's."
)


def export(plan: Plan, model: ModelFile) -> Export:
    """ds_config.json. What JSON cannot say stands under its key "amptune", which DeepSpeed does not read."""
    low = half_autocast(plan)
    lost = tuple(_lost(plan, model, low))
    notes = (*_notes(plan, model, low), *model.notes, *plan_notes(plan))
    content: dict[str, Any] = {
        "amptune": {
            "about": headline("DeepSpeed", plan),
            "notes": list(notes),
            "lost": [str(item) for item in lost],
            "python": _python(plan, model, low).splitlines(),
        },
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "fp16": _fp16(plan),
        "bf16": {"enabled": False},
        "torch_autocast": _autocast(plan, low),
    }
    return Export(json.dumps(content, indent=2) + "\n", lost, notes)


def _fp16(plan: Plan) -> dict[str, Any]:
    """The block for those who do choose DeepSpeed's own FP16 mode: off, with the plan's loss scale in it."""
    block: dict[str, Any] = {"enabled": False}
    if plan.scaler.enabled:
        power = max(0, math.floor(math.log2(plan.scaler.init_scale)))
        block |= {
            "loss_scale": 0, "initial_scale_power": power, "loss_scale_window": plan.scaler.growth_interval,
            "hysteresis": 1, "min_loss_scale": 1,
        }  # fmt: skip
    return block


def _autocast(plan: Plan, low: Format | None) -> dict[str, Any]:
    if low:
        names = list(LOWER_PRECISION_MODULES)
        return {"enabled": True, "dtype": low.torch_name, "lower_precision_safe_modules": names}
    if plan.scaler.enabled:
        # An empty list: gradients are reduced in FP32, as they were measured.
        return {"enabled": True, "dtype": "float16", "lower_precision_safe_modules": []}
    return {"enabled": False}


def _python(plan: Plan, model: ModelFile, low: Format | None) -> str:
    precision = "high" if plan.tf32 else "highest"
    lines = _PLAIN.format(
        imports=model.imports("make_optimizer", "set_backend_flags", original=bool(low)),
        flags=f'torch.set_float32_matmul_precision("{precision}")' if low else "set_backend_flags()",
        builder=model.original_builder if low else model.builder,
        optimizer=optimizer_of(model),
    )
    if plan.scaler.enabled:
        lines += _SCALER.format(arguments=scaler_arguments(plan.scaler))
        lines += "" if low else _OUTSIDE
    return lines


def _notes(plan: Plan, model: ModelFile, low: Format | None) -> tuple[str, ...]:
    notes = [_YOURS]
    if low:
        return (*notes, "The plan is stock autocast, which the torch_autocast block has: the model needs no patch.")
    notes.append(f"{model.module}.py and amptune_runtime.py belong beside your script: start it as 'python' does.")
    if plan.scaler.enabled:
        notes.append("torch_autocast is on for its loss scaler; the lines in 'python' keep its region off the model.")
    return tuple(notes)


def _lost(plan: Plan, model: ModelFile, low: Format | None) -> list[Lost]:
    lost = []
    if not low and plan.sites:
        lost.append(
            Lost(
                "DeepSpeed's JSON has one precision for the whole model; lower_precision_safe_modules sets the dtype "
                "of communication by class, not what a layer computes in",
                f"The formats of {len(plan.sites)} sites come with {model.module}.py; do not enable fp16 or bf16: they "
                "cast the parameters, and no layer can leave them.",
            )
        )
    if plan.scaler.enabled:
        lost.append(
            Lost(
                "torch_autocast has no fields for the loss scaler, which starts at 65536",
                "The lines in 'python' set it on the engine; the fp16 block has the same numbers, switched off.",
            )
        )
        lost += scaler_lost(plan.scaler, "DeepSpeed's fp16 block, off here,", power_of_two=True, floor=1.0)
    return lost
