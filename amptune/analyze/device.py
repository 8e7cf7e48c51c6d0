"""The GPU that is present, as an entry of the hardware table."""

from __future__ import annotations

from typing import Any

import torch

from amptune.core.hardware import DEFAULT_GPUS, GPUS, Gpu, gpu_for_device, gpus_named


def present_gpu() -> Gpu | None:
    """The first CUDA device, with its own memory, SM count and bandwidth; ``None`` without one."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return gpu_for_device(
        properties.name,
        (properties.major, properties.minor),
        properties.total_memory,
        properties.multi_processor_count,
        _bandwidth(properties),
    )


def _bandwidth(properties: Any) -> float | None:
    """GB/s from memory clock (kHz, two transfers a cycle) and bus width (bits), where torch reports them."""
    clock = getattr(properties, "memory_clock_rate", None)
    width = getattr(properties, "memory_bus_width", None)
    return 2 * clock * 1e3 * width / 8 / 1e9 if clock and width else None


def chosen_gpus(names: tuple[str, ...]) -> tuple[tuple[Gpu, ...], bool, str]:
    """GPUs to report on, whether they were named or are present, and a note for the user.

    Raises:
        UsageError: an unknown name.
    """
    if names:
        return gpus_named(names), True, ""
    found = present_gpu()
    if found is not None:
        note = f"GPU: {found.name}" + (f" ({found.notes})" if found.key not in GPUS else "")
        return (found,), True, note
    return (
        gpus_named(DEFAULT_GPUS),
        False,
        f"no GPU here: reporting on {', '.join(DEFAULT_GPUS)} (--gpu chooses others)",
    )
