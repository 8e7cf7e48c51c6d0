"""What objects are."""

from __future__ import annotations

import ast

import pytest

from tests.lint.helpers import marked, source_of


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("import torch\ns = torch.amp.GradScaler('cuda')\nHERE(s)", "scaler"),
        ("import torch\ns = torch.cuda.amp.GradScaler() if amp else None\nHERE(s)", "scaler"),
        ("from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler as S\ns = S()\nHERE(s)", "scaler"),
        ("import torch\nclass Mine(torch.amp.GradScaler): pass\ns = Mine()\nHERE(s)", "scaler"),
        ("def f(scaler): HERE(scaler)", "scaler"),
        ("def f(x: 'torch.amp.GradScaler | None'): HERE(x)", "scaler"),
        ("class A:\n    def f(self): HERE(self.grad_scaler)", "scaler"),
        ("HERE(self.scalers[0])", "scaler"),
        ("HERE(state['scaler'])", "scaler"),
        ("from sklearn.preprocessing import StandardScaler\nscaler = StandardScaler()\nHERE(scaler)", "other"),
        ("def f(scaler, x):\n    scaler.fit(x)\n    HERE(scaler)", "unknown"),
        ("def f(scaler: StandardScaler): HERE(scaler)", "other"),
        ("s = NativeScaler()\nHERE(s)", "wrapper_scaler"),
        ("import torch\no = torch.optim.AdamW(p)\nHERE(o)", "optimizer"),
        ("def f(opt_d): HERE(opt_d)", "optimizer"),
        ("HERE(optimizerG)", "optimizer"),
        ("HERE(options)", "unknown"),
        ("HERE(opt_scheduler)", "scheduler"),
        ("from torch.optim.lr_scheduler import StepLR\ns = StepLR(o, 3)\nHERE(s)", "scheduler"),
        ("from accelerate import Accelerator\na = Accelerator()\nHERE(a)", "accelerator"),
        ("HERE(model_engine)", "engine"),
        ("HERE(upscaler)", "unknown"),
        ("HERE(model)", "unknown"),
    ],
)
def test_kind(code: str, kind: str) -> None:
    source = source_of(code)
    assert source.kind(marked(source)) == kind


def test_scalers_that_are_off() -> None:
    code = "import torch\ns = torch.amp.GradScaler('cuda', enabled={})\nHERE(s)"
    for value, off in (("False", True), ("True", False), ("flag", False), ("not True", True)):
        source = source_of(code.format(value))
        assert source.kinds.is_switched_off(marked(source)) is off, value


def test_frameworks() -> None:
    source = source_of("import pytorch_lightning as pl\nfrom accelerate import Accelerator\nfrom .deepspeed import x")
    assert source.frameworks == {"lightning", "accelerate"}


def test_constructors() -> None:
    source = source_of("import torch\nfrom torch.cuda.amp import GradScaler as G\nG(); torch.amp.GradScaler(); g()")
    assert len(source.kinds.scaler_constructors()) == 2
    assert all(isinstance(call, ast.Call) for call in source.kinds.scaler_constructors())
