"""Benchmark models at a tiny size train on the CPU, in FP32 and under BF16 autocast, before a GPU runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from amptune.capture import TargetSpec, load_target

MODELS = Path(__file__).parent / "models"
TINY: dict[str, dict[str, Any]] = {
    "qwen": {"LENGTH": 32, "WORDS": 512, "WIDTH": 64, "HIDDEN": 96, "HEADS": 4, "GROUPS": 2, "SIDE": 16, "LAYERS": 2},
    "mixtral": {
        "LENGTH": 32,
        "WORDS": 512,
        "WIDTH": 64,
        "HIDDEN": 96,
        "HEADS": 4,
        "GROUPS": 2,
        "EXPERTS": 4,
        "LAYERS": 2,
    },
    "dit": {"BATCH": 2, "SIDE": 8, "WIDTH": 48, "HEADS": 4, "DEPTH": 2, "SINES": 16},
    "dgcnn": {"BATCH": 3, "POINTS": 64, "FEATURES": 64},
    "gat": {"NODES": 50, "EDGES": 200},
    "fcos": {"BATCH": 1, "SIDE": 128, "DEPTHS": (1, 1, 1, 1), "TOWER": 1, "WIDTH": 64},
    "patchtst": {"BATCH": 2, "METERS": 5, "LAYERS": 2},
    "codec": {"BATCH": 2, "SAMPLES": 3200, "WIDTH": 4, "CODES": 16, "DIM": 16},
    "glow": {"BATCH": 2, "SIDE": 16, "STEPS": 2, "HIDDEN": 16},
    # 3 voxels a side at the bottom: of 2 x 2 x 2 volumes torch 2.13 gives BF16 weight gradients with NaN on processors
    # with AVX-512 BF16 (nn.Conv3d(16, 16, 3, padding=1) alone: 184 of 300 steps, after memory that held NaN).
    "volume": {"BATCH": 1, "SIDE": 48, "WIDTHS": (4, 8, 8, 16, 16)},
    "sam": {"BATCH": 1, "SIDE": 128, "LAYERS": 2, "GLOBAL": (1,)},
}
OPTIONAL = {"sam": ("prompt_encoder.", "mask_decoder.")}
"""Parts that other batches need: embeddings of points and masks, heads of further masks."""


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "autocast-bf16"])
def test_a_step_trains_every_weight_that_the_loss_needs(name: str, half: bool, tmp_path: Path) -> None:
    text = (MODELS / f"{name}.py").read_text(encoding="utf-8")
    for constant in TINY[name]:
        assert f"{constant}," in text or f"{constant} =" in text, "no constant of the file"
    small = tmp_path / f"{name}.py"
    # Functions read the constants when they are called, defaults and the rest of the file do not.
    small.write_text(text + "\n" + "\n".join(f"{key} = {value!r}" for key, value in TINY[name].items()) + "\n")
    target = load_target(TargetSpec(str(small), {}))
    torch.manual_seed(0)
    model, batch = target.make_model().train(), target.make_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        loss = target.loss(target.call(model, batch), batch)
    loss.backward()
    left = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not [each for each in left if not each.startswith(OPTIONAL.get(name, ("-",)))]
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
