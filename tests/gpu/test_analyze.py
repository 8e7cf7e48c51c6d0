"""What analyze says of the GPU at hand, against the GPU."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.gpu


def test_present_gpu_is_in_the_table_or_says_that_it_is_not() -> None:
    import torch

    from amptune.analyze.device import present_gpu
    from amptune.core.hardware import GPUS

    gpu = present_gpu()
    assert gpu is not None
    assert gpu.capability == torch.cuda.get_device_capability()
    assert gpu.key in GPUS or "not in the table" in gpu.notes
    assert 100 < gpu.bandwidth < 20_000


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_predicted_products_are_within_a_factor_of_two(name: str) -> None:
    import torch

    from amptune.analyze.device import present_gpu
    from amptune.core.formats import Format
    from amptune.core.graph import Gemm
    from amptune.core.roofline import gemm_seconds

    gpu = present_gpu()
    assert gpu is not None
    number_format = Format.parse(name)
    if not gpu.is_native(number_format):
        pytest.skip(f"{name} is emulated here")
    torch.set_float32_matmul_precision("highest")
    left, right = (torch.randn(4096, 4096, device="cuda", dtype=getattr(torch, name)) for _ in range(2))
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(5):
        left @ right
    start.record()
    for _ in range(20):
        left @ right
    end.record()
    torch.cuda.synchronize()
    measured = start.elapsed_time(end) / 20 / 1e3
    predicted = gemm_seconds(Gemm(4096, 4096, 4096), number_format, gpu)
    assert 0.5 < predicted / measured < 2
