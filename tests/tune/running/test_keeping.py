from __future__ import annotations

import pytest
import torch

from amptune.core.formats import Format
from amptune.tune.quality.quality import judge
from amptune.tune.quality.reference import measure_reference
from amptune.tune.running.device import Device
from amptune.tune.running.keeping import bytes_beside, fits_beside
from amptune.tune.running.recipes import Candidate
from tests.tune.conftest import MLP, Make

GIB = 2**30


def test_three_copies_of_a_model_may_take_a_tenth_of_the_gpu() -> None:
    assert fits_beside(2 * GIB, 80 * GIB)
    assert not fits_beside(3 * GIB, 80 * GIB)
    assert not fits_beside(1 * GIB, 24 * GIB)
    assert fits_beside(100 * GIB, None)


def test_what_is_kept_on_the_host_judges_as_what_is_kept_on_the_device(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = Candidate("autocast-bf16", autocast=Format.BF16)
    found = []
    for memory in (None, 1):
        monkeypatch.setattr(Device, "memory_bytes", lambda _self, memory=memory: memory)
        bench, batches = make_bench(MLP, steps=4)
        reference = measure_reference(bench, batches, tolerance=0.02, seed=0)
        found.append(judge(bench, candidate, batches, reference, seed=0))
    assert found[0] == found[1]


def test_what_replaces_something_kept_is_kept_alone(make_bench: Make) -> None:
    bench, batches = make_bench(MLP, steps=4)
    reference = measure_reference(bench, batches, tolerance=0.02, seed=0)
    assert set(bench.kept) == {"initial", "judged at", "gradients"}
    assert bench.kept["judged at"] is reference.state
    assert bench.kept["gradients"] is reference.gradients
    before = reference.gradients["fc1.weight"].clone()
    next(bench.model.parameters()).data.zero_()
    assert torch.equal(reference.gradients["fc1.weight"], before)


def test_nothing_on_a_cpu_is_gpu_memory(make_bench: Make) -> None:
    bench, batches = make_bench(MLP, steps=4)
    assert bytes_beside(bench.kept.values(), batches) == 0
    assert bench.peak_memory(batches) is None
