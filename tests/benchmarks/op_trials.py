"""Tries ops of torch's operator tests on one device, in every format, forward and backward: the child of op_support.py.

Prints one JSON line before each trial and one after it, so that whoever reads them knows which trial ended the process
(a device assertion poisons the CUDA context for good, a kernel may crash or hang).

    python tests/benchmarks/op_trials.py DEVICE SHARD SHARDS [FIRST]
"""

from __future__ import annotations

import itertools
import json
import sys
import types
import unittest
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree

FORMATS = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
DIRECTIONS = ("forward", "backward")
SAMPLES = 3
LOOKED_AT = 12
LARGEST_SAMPLE = 1 << 20
POISONED = 3
"""Exit code after an error that leaves the device unusable."""


def operators(*, every_capability: bool) -> list[Any]:
    """torch's operator tests, in their order.

    Args:
        every_capability: ``dtypesIfCUDA`` is worked out for the GPU at hand when the table is imported; without one
            BF16 would look unsupported in matmul and five others, so all capabilities are said to be present.
    """
    if "expecttest" not in sys.modules:
        try:
            import expecttest  # noqa: F401
        except ImportError:
            # torch's test utilities derive a class from it; nothing here runs that class.
            stand_in = types.ModuleType("expecttest")
            stand_in.TestCase = unittest.TestCase  # type: ignore[attr-defined]
            sys.modules["expecttest"] = stand_in
    if every_capability:
        from torch.testing._internal import common_cuda

        for name in vars(common_cuda):
            if name.startswith("SM") and name.endswith("OrLater"):
                setattr(common_cuda, name, True)
    from torch.testing._internal.common_methods_invocations import op_db

    return list(op_db)


def samples_of(info: Any, device: str) -> list[Any]:
    """A few inputs on which the op runs in FP32, and neither is empty; none for an op without float arguments."""
    if torch.float32 not in info.supported_dtypes(device):
        return []
    try:
        drawn = info.sample_inputs(device, torch.float32, requires_grad=False)
        looked_at = [sample for sample in itertools.islice(drawn, LOOKED_AT) if _is_usable(sample)]
    except Exception:  # samples of rare ops need libraries that are not here
        return []
    return list(itertools.islice((sample for sample in looked_at if _computes(info, sample)), SAMPLES))


def _computes(info: Any, sample: Any) -> bool:
    try:
        results = _tensors(info.op(sample.input, *sample.args, **sample.kwargs))
    except Exception:  # a sample that does not run in FP32 says nothing about the other formats
        return False
    return any(tensor.numel() for tensor in results)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _is_usable(sample: Any) -> bool:
    tensors = _tensors((sample.input, sample.args, sample.kwargs))
    if any(tensor.layout is not torch.strided for tensor in tensors):
        return False
    floating = [tensor for tensor in _tensors(sample.input) if tensor.is_floating_point()]
    return bool(floating) and all(0 < tensor.numel() <= LARGEST_SAMPLE for tensor in tensors)


def failure(info: Any, sample: Any, dtype: torch.dtype, direction: str) -> str:
    """Why the op does not run on the sample in ``dtype``, in torch's words; empty when it runs."""
    wants_gradient = direction == "backward"

    def cast(value: Any) -> Any:
        if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
            return value
        return value.detach().to(dtype).clone().requires_grad_(wants_gradient)

    given, args, kwargs = _pytree.tree_map(cast, (sample.input, sample.args, sample.kwargs))
    try:
        result = info.op(given, *args, **kwargs)
        if wants_gradient:
            _backward(result, [tensor for tensor in _tensors((given, args, kwargs)) if tensor.requires_grad])
        if any(tensor.is_cuda for tensor in _tensors(given)):
            torch.cuda.synchronize()
    except Exception as error:  # whatever torch raises is the answer
        return (str(error).splitlines() or [type(error).__name__])[0][:160]
    return ""


def _backward(result: Any, inputs: list[torch.Tensor]) -> None:
    outputs = [tensor for tensor in _tensors(result) if tensor.requires_grad]
    if not outputs:
        raise RuntimeError("no output needs a gradient")
    torch.autograd.grad(outputs, inputs, [torch.ones_like(tensor) for tensor in outputs], allow_unused=True)


def claims(info: Any, device: str) -> dict[str, dict[str, bool]]:
    """Direction -> format -> whether torch's tests claim that the op supports it."""
    known = {"forward": info.supported_dtypes(device), "backward": info.supported_backward_dtypes(device)}
    return {
        direction: {name: getattr(torch, name) in known[direction] for name in FORMATS}
        for direction in DIRECTIONS
        if direction == "forward" or info.supports_autograd
    }


def trials(info: Any, device: str) -> Iterator[tuple[str, str, Any]]:
    """(direction, format, what to call for the number of samples tried, of those that ran, and the first failure)."""
    samples = samples_of(info, device)
    for direction in DIRECTIONS:
        usable = samples if direction == "forward" else _with_backward(info, samples)
        for name in FORMATS if usable else ():

            def run(usable: list[Any] = usable, name: str = name, direction: str = direction) -> dict[str, Any]:
                failures = [failure(info, sample, getattr(torch, name), direction) for sample in usable]
                why = next((text for text in failures if text), "")
                return {"tried": len(failures), "ran": failures.count(""), "why": why}

            yield direction, name, run


def _with_backward(info: Any, samples: list[Any]) -> list[Any]:
    if not info.supports_autograd:
        return []
    return [sample for sample in samples if not failure(info, sample, torch.float32, "backward")]


def _say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _is_poisoned(device: str) -> bool:
    if device != "cuda":
        return False
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError:
        return True
    return False


def main() -> int:
    """Try every SHARDS-th op from SHARD on; those before position FIRST are skipped."""
    device, shard, shards, first = sys.argv[1], *map(int, (*sys.argv[2:4], *(sys.argv[4:5] or ["0"])))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    mine = operators(every_capability=device == "cpu")[shard::shards]
    _say(ops=len(mine))
    for position, info in enumerate(mine[first:], start=first):
        label = f"{info.name} {info.variant_test_name}".strip()
        _say(position=position, op=label, name=info.name, claims=claims(info, device))
        for direction, name, run in trials(info, device):
            _say(trying=[label, direction, name])
            found = run()
            _say(done=[label, direction, name], **found)
            if found["why"] and _is_poisoned(device):
                return POISONED
    return 0


if __name__ == "__main__":
    sys.exit(main())
