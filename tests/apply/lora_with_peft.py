"""Fine-tuning with peft's LoRA on a planned model, in both orders; run by the interpreter that has peft."""

from __future__ import annotations

import sys

import torch
from peft import LoraConfig, get_peft_model  # type: ignore[import-not-found]

from amptune.runtime import PlannedLinear, apply_plan
from tests.apply.composing import LanguageModel, loss_of, tokens


def losses(order: str) -> list[float]:
    """Ten steps of training the adapters alone."""
    torch.manual_seed(0)
    model = LanguageModel()
    config = LoraConfig(r=2, target_modules=["qkv", "fc1"], lora_dropout=0.0)
    if order == "plan first":
        apply_plan(model, {"**": "bf16"})
    adapted = get_peft_model(model, config)
    if order == "peft first":
        apply_plan(model, {"**": "bf16"})
    assert order == "fp32" or isinstance(model.blocks[0].qkv.base_layer, PlannedLinear)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-2)
    found = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = loss_of(adapted, tokens())
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert len(trained) == 8
    assert all(parameter.grad is not None for parameter in trained)
    assert {parameter.dtype for parameter in adapted.parameters()} == {torch.float32}
    return found


def main() -> int:
    """Exit with 0 where both orders train as FP32 does."""
    expected = losses("fp32")
    for order in ("peft first", "plan first"):
        found = losses(order)
        if any(abs(a - b) > 0.03 * a for a, b in zip(expected, found, strict=True)) or found[-1] > 0.6 * found[0]:
            print(f"{order}: {found}, in FP32 {expected}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
