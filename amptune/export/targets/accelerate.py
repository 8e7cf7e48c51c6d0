"""Hugging Face Accelerate: it must not enter autocast, and must scale the loss as the plan says."""

from __future__ import annotations

from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.export.code import (
    feed_import,
    loop_parts,
    optimizer_of,
    python_file,
    scaler_arguments,
    standard_imports,
)
from amptune.export.export import Export
from amptune.export.model import ModelFile
from amptune.export.view import half_autocast

_FILE = """\
{standard_imports}import torch
from accelerate import Accelerator
{handler_import}
{imports}

STEPS = 200
ACCUMULATE = 1  # batches for each optimizer step
MAX_NORM = 1.0


def make_accelerator(**kwargs):
    \"\"\"{why}\"\"\"
    return Accelerator({accelerator})


{feed}{batches}

def train(accelerator, model, optimizer, data, steps=STEPS):
    \"\"\"``steps`` optimizer steps; model and optimizer come from ``accelerator.prepare``.\"\"\"
    model.train()
    for _ in range(steps * accelerator.gradient_accumulation_steps):
        with accelerator.accumulate(model):
            batch = accelerator_batch(next(data), accelerator.device)
            output = {output}
            loss = {loss}
            accelerator.backward(loss)  # divides by the number of accumulated batches{and_scales}
            if accelerator.sync_gradients:
{unscales}                accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            optimizer.zero_grad()
    return loss.detach()


def accelerator_batch(value, device):
    \"\"\"Tensors of a batch on ``device``; not needed for a DataLoader that went through ``accelerator.prepare``.\"\"\"
    if isinstance(value, dict):
        return {{key: accelerator_batch(item, device) for key, item in value.items()}}
    if isinstance(value, (tuple, list)):
        return type(value)(accelerator_batch(item, device) for item in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


def main():
    {flags}
    accelerator = make_accelerator(gradient_accumulation_steps=ACCUMULATE)
    model = {builder}()
    optimizer = {optimizer}
    model, optimizer = accelerator.prepare(model, optimizer)
    loss = train(accelerator, model, optimizer, batches())
    accelerator.print(f"loss {{loss.item():.4f}}")


if __name__ == "__main__":
    main()
"""
_UNSCALES = "                # Takes the loss scale out first; torch's own clipping would not.\n"
_IN_FORCE = (
    "mixed_precision is given here, so `accelerate config` and --mixed_precision do not change it: an autocast region "
    "of Accelerate's would pull what the plan keeps in FP32 into 16 bits."
)


def export(plan: Plan, model: ModelFile) -> Export:
    """A script whose Accelerator leaves the precision to the model; scaler settings as GradScalerKwargs."""
    low = half_autocast(plan)
    scaled = plan.scaler.enabled
    arguments, why = _accelerator(plan, low)
    handlers = [*(["AutocastKwargs"] if scaled and not low else []), *(["GradScalerKwargs"] if scaled else [])]
    code = _FILE.format(
        **loop_parts(plan, model, original=bool(low)),
        standard_imports=standard_imports(feed_import(model)),
        handler_import=f"from accelerate.utils import {', '.join(handlers)}\n" if handlers else "",
        why=why,
        accelerator=arguments,
        and_scales=", multiplies by the loss scale" if scaled else "",
        unscales=_UNSCALES if scaled else "",
        optimizer=optimizer_of(model),
    )
    notes: tuple[str, ...] = (
        ("The plan is stock autocast, which Accelerate has itself: the model needs no patch.",)
        if low
        else (f"{model.module}.py and amptune_runtime.py belong beside this file.", _IN_FORCE)
    )
    if scaled:
        notes = (*notes, "On a CPU Accelerate has no loss scaling: FP16 plans are for GPUs.")
    return python_file(f"Accelerate for {model.original}", plan, model, code, lost=[], notes=notes)


def _accelerator(plan: Plan, low: Format | None) -> tuple[str, str]:
    """The arguments of Accelerator, and why they are so."""
    scaler = f"GradScalerKwargs({scaler_arguments(plan.scaler)})"
    if low is Format.FP16 and plan.scaler.enabled:
        return _with_handlers([scaler]), "Autocast in float16 with the tuned loss scaler."
    if low:
        return f'mixed_precision="{low.label}", **kwargs', f"Autocast in {low.torch_name}, as it was measured."
    if not plan.scaler.enabled:
        return 'mixed_precision="no", **kwargs', "No autocast: the precision of each layer is in the model."
    why = "float16 for its loss scaler alone; its autocast is off, since the precision of each layer is in the model."
    return _with_handlers(["AutocastKwargs(enabled=False)", scaler]), why


def _with_handlers(handlers: list[str]) -> str:
    lines = "".join(f"            {handler},\n" for handler in handlers)
    return f'\n        mixed_precision="fp16",\n        kwargs_handlers=[\n{lines}        ],\n        **kwargs,\n    '
