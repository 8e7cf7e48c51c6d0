"""The Python lines of a training loop with the chosen GradScaler, each call in its place."""

from __future__ import annotations

from amptune.core.plan import ScalerConfig

_LOOP = """\
{scaler}

accumulate = {accumulate}  # batches for each optimizer step
max_norm = {max_norm}  # gradients are clipped to it

model.train()
optimizer.zero_grad(set_to_none=True)
for number, batch in enumerate(batches, 1):
    output = model(batch[0])
    loss = loss_fn(output, batch) / accumulate
    scaler.scale(loss).backward()
    if number % accumulate:
        continue  # one scale for all batches of a step: unscale_, step and update come after the last
    scaler.unscale_(optimizer)  # before clipping, which would else compare scaled gradients with max_norm
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    scaler.step(optimizer)  # leaves the step out where a gradient is not finite
    scaler.update()  # once for each step, after it
    optimizer.zero_grad(set_to_none=True)
"""


def scaler_lines(config: ScalerConfig, device_type: str = "cuda") -> str:
    """The lines that build the GradScaler; a disabled one passes losses and steps through."""
    if not config.enabled:
        return f'scaler = torch.amp.GradScaler("{device_type}", enabled=False)  # no site computes in FP16\n'
    return (
        "scaler = torch.amp.GradScaler(\n"
        f'    "{device_type}",\n'
        f"    init_scale={scale_literal(config.init_scale)},\n"
        f"    growth_factor={config.growth_factor},\n"
        f"    backoff_factor={config.backoff_factor},\n"
        f"    growth_interval={config.growth_interval},\n"
        ")\n"
    )


def training_loop(
    config: ScalerConfig, device_type: str = "cuda", *, accumulate: int = 1, max_norm: float = 1.0
) -> str:
    """A training loop as text, over ``batches`` of ``(inputs, targets)``, with accumulation and clipping.

    It reads the names model, loss_fn, optimizer, batches and torch. The order of unscale_, clipping, step and update
    is the one that ``torch.amp`` documents.
    """
    lines = scaler_lines(config, device_type).rstrip("\n")
    return _LOOP.format(scaler=lines, accumulate=accumulate, max_norm=max_norm)


def scale_literal(scale: float) -> str:
    """A power of two as one: ``2.0**13``."""
    mantissa, exponent = float(scale).hex().split("p")
    return f"2.0**{int(exponent)}" if mantissa == "0x1.0000000000000" else repr(scale)
