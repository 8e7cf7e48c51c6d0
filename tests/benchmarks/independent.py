"""Stock recipes and a patched model side by side, timed without amptune's measuring: a check on what tune claims.

    python tests/benchmarks/independent.py MODEL.py OUT/MODEL_amptuned.py [--rounds 5] [--compile [--eager-plan]]

Both files are imported as their users import them, each recipe trains its own model in a plain loop with fused AdamW
(or the file's ``make_optimizer``) on one batch, and the rounds go through the recipes in turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

STEPS = 6
STOCK = {"tf32": None, "autocast-bf16": torch.bfloat16, "autocast-fp16": torch.float16}
Step = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("patched", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="all under torch.compile(model)")
    parser.add_argument("--eager-plan", action="store_true", help="all but the plan, which is for eager mode")
    parser.add_argument("--recipes", default=",".join(STOCK), help="stock recipes beside the plan")
    args = parser.parse_args()
    original, patched = _imported(args.model), _imported(args.patched)
    torch.manual_seed(0)
    batch = _on_gpu(original.make_batch())
    names = filter(None, args.recipes.split(","))
    steps = {name: _step_of(name, original, batch, compiles=args.compile) for name in names}
    steps["plan"] = _step_of("plan", patched, batch, compiles=args.compile and not args.eager_plan)
    times = _in_turns(steps, args.rounds)
    for name, found in times.items():
        print(f"{name:14} {statistics.median(found):8.2f} ms a step, {min(found):.2f} to {max(found):.2f}")
    stock = min(statistics.median(found) for name, found in times.items() if name != "plan")
    print(f"plan: {stock / statistics.median(times['plan']):.3f}x the fastest stock recipe, on {_device()}")


def _imported(path: Path) -> ModuleType:
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _step_of(name: str, module: ModuleType, batch: Any, *, compiles: bool) -> Step:
    """One training step of a recipe, as its user would write it."""
    torch.manual_seed(0)
    model = module.make_model().cuda().train()
    make = getattr(module, "make_optimizer", lambda params: torch.optim.AdamW(params, lr=3e-4, fused=True))
    optimizer, low = make(model.parameters()), STOCK.get(name)
    model = torch.compile(model) if compiles else model
    scaler = torch.amp.GradScaler("cuda", enabled=low is torch.float16 or (name == "plan" and _is_scaled(module)))

    def step() -> Any:
        torch.set_float32_matmul_precision("high")  # TF32; cuDNN allows it anyway
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", low or torch.bfloat16, enabled=low is not None):
            loss = _loss(module, model, batch)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _is_scaled(module: ModuleType) -> bool:
    """Whether the scaler.json beside a patched model has a loss scale."""
    beside = Path(str(module.__file__)).with_name("scaler.json")
    return bool(json.loads(beside.read_text())["gradscaler"]["enabled"])


def _loss(module: ModuleType, model: Any, batch: Any) -> torch.Tensor:
    """As the files of tests/benchmarks/models have it: ``run``, a dict of arguments, or (inputs, targets)."""
    if hasattr(module, "run"):
        output = module.run(model, batch)
    elif isinstance(batch, dict):
        output = model(**batch)
    else:
        output = model(*batch[0]) if isinstance(batch[0], tuple) else model(batch[0])
    found: torch.Tensor = module.loss_fn(output, batch) if hasattr(module, "loss_fn") else output.loss
    return found


def _in_turns(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    for step in steps.values():
        for _ in range(STEPS):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step()
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(STEPS):
                step()
            torch.cuda.synchronize()
            times[name].append((time.perf_counter() - begin) / STEPS * 1e3)
    return times


def _on_gpu(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _on_gpu(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_on_gpu(item) for item in value)
    return value.cuda() if isinstance(value, torch.Tensor) else value


def _device() -> str:
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
