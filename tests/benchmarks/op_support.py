"""Generates amptune/data/op_support.json: which ops have no kernel for a 16-bit format, forward and backward.

Read from torch's own operator tests (``op_db``), which name the supported dtypes of each op on each device; with
``--try DEVICE`` every claim is checked by running the first sample of the op on that device. Needs ``expecttest``.

    python tests/benchmarks/op_support.py [--try cpu] [--try cuda]
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from pathlib import Path
from typing import Any

import torch

from amptune.capture.names import op_name_of_spelling
from amptune.core.files import write_atomic

OUT = Path(__file__).resolve().parents[2] / "amptune" / "data" / "op_support.json"
FORMATS = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# Variants that exist for layouts and shifts of indices, and say nothing about arithmetic in 16 bits.
SKIPPED = ("masked.", "_refs.", "sparse.", "fft.fftshift", "fft.ifftshift", "fft.fftfreq", "fft.rfftfreq")


def op_db_for_gpus() -> list[Any]:
    """torch's operator tests, with every compute capability said to be present.

    ``dtypesIfCUDA`` is worked out for the GPU at hand when the table is imported; without one BF16 would look
    unsupported in matmul and five others.
    """
    from torch.testing._internal import common_cuda

    for name in vars(common_cuda):
        if name.startswith("SM") and name.endswith("OrLater"):
            setattr(common_cuda, name, True)
    from torch.testing._internal.common_methods_invocations import op_db

    return list(op_db)


def our_name(info: Any) -> str | None:
    """The name that a capture gives the op; ``None`` for what says nothing about 16 bits."""
    name = str(info.name)
    if name.startswith(SKIPPED) or name.startswith("__"):
        return None
    return str(op_name_of_spelling(name.removeprefix("nn.functional.").removeprefix("_native_").replace(".", "_")))


def claims(info: Any) -> dict[tuple[str, str, str], bool]:
    """(device, direction, format) -> whether the op is supported, as torch's tests claim."""
    sets = {
        ("cpu", "forward"): info.dtypes,
        ("cpu", "backward"): info.backward_dtypes,
        ("cuda", "forward"): info.dtypesIfCUDA,
        ("cuda", "backward"): info.backward_dtypesIfCUDA,
    }
    differentiable = bool(info.supports_autograd)
    return {
        (device, direction, name): dtype in known
        for (device, direction), known in sets.items()
        for name, dtype in FORMATS.items()
        if direction == "forward" or differentiable
    }


def works(info: Any, device: str, dtype: torch.dtype) -> bool | None:
    """Whether the first sample runs forward; ``None`` where the op has no sample."""
    try:
        sample = next(iter(info.sample_inputs(device, torch.float32, requires_grad=False)), None)
    except Exception:  # samples of rare ops need libraries that are not here
        return None
    if sample is None or not isinstance(sample.input, torch.Tensor):
        return None

    def cast(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    try:
        info.op(cast(sample.input), *map(cast, sample.args), **{k: cast(v) for k, v in sample.kwargs.items()})
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError):
        return False
    return True


def build(tried: list[str]) -> dict[str, Any]:
    """The content of the file: only gaps are listed."""
    supported: dict[str, dict[tuple[str, str, str], bool]] = collections.defaultdict(dict)
    disagree = []
    for info in op_db_for_gpus():
        name = our_name(info)
        if name is None:
            continue
        for key, value in claims(info).items():
            # Several entries of torch's table can be one op of ours: it is supported where any variant is.
            supported[name][key] = supported[name].get(key, False) or value
        for device in tried:
            for label, dtype in FORMATS.items():
                found = works(info, device, dtype)
                if found is not None and found != claims(info)[device, "forward", label]:
                    disagree.append(f"{info.name} {info.variant_test_name} {device} {label}: runs={found}")
    ops: dict[str, Any] = {}
    for name, cells in sorted(supported.items()):
        gaps: dict[str, dict[str, list[str]]] = {}
        for (device, direction, label), value in sorted(cells.items()):
            if not value:
                gaps.setdefault(device, {}).setdefault(direction, []).append(label)
        if gaps:
            ops[name] = gaps
    return {
        "version": 1,
        "torch": torch.__version__,
        "how": "dtypes of torch.testing op_db, all compute capabilities assumed present",
        "tried_on": {device: _device_name(device) for device in tried},
        "disagreements": sorted(disagree),
        "checked": sorted(supported),
        "gaps": ops,
    }


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()


def main() -> int:
    """Write the file and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--try", dest="tried", action="append", default=[], choices=["cpu", "cuda"])
    data = build(parser.parse_args().tried)
    write_atomic(OUT, json.dumps(data, indent=1) + "\n")
    print(f"{len(data['checked'])} ops, {len(data['gaps'])} with gaps, {len(data['disagreements'])} disagreements")
    return 0


if __name__ == "__main__":
    sys.exit(main())
