"""Exported files on a GPU: the loss scale that Accelerate and the Trainer have only there, and autocast kept off."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from amptune import runtime
from amptune.apply import check_realised

from ..export import plans
from ..export.conftest import Importer, export, importer, with_patched  # noqa: F401

pytestmark = pytest.mark.gpu
TUNED = (plans.TUNED.init_scale, plans.TUNED.growth_factor, plans.TUNED.backoff_factor, plans.TUNED.growth_interval)


@pytest.fixture(autouse=True)
def same_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amptune_runtime", runtime)


def numbers(scaler: Any) -> tuple[float, float, float, int]:
    return (
        scaler.get_scale(), scaler.get_growth_factor(), scaler.get_backoff_factor(), scaler.get_growth_interval(),
    )  # fmt: skip


def check(model: Any, step: Any, name: str) -> None:
    """The plan is in force, autocast reaches no layer, and the step was taken."""
    seen: list[bool] = []
    for module in model.modules():
        if module is not model:
            module.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cuda")))
    before = model.head.weight.detach().clone()
    assert check_realised(model, step, plans.PLANS[name]) == []
    assert seen
    assert not any(seen)
    assert not before.equal(model.head.weight), "the scaler skipped the step"


@pytest.mark.parametrize("name", ["bf16", "fp16", "mixed"])
def test_the_pytorch_loop(name: str, tmp_path: Path, importer: Importer) -> None:  # noqa: F811
    with_patched(tmp_path, name)
    train = importer(export(tmp_path, name, "pytorch", "train.py"))
    assert train.DEVICE.type == "cuda"
    model = train.make_model().cuda()
    optimizer = train.make_optimizer(model.parameters())
    scaler = [torch.amp.GradScaler("cuda", **plans.TUNED.to_json())] if plans.PLANS[name].scaler.enabled else []
    check(model, lambda: train.train(model, optimizer, *scaler, train.batches(), steps=1), name)
    losses = train.train(model, optimizer, *scaler, train.batches(), steps=80)
    assert sum(losses[-10:]) / 10 < losses[0] / 2


def test_accelerate_scales_as_planned(tmp_path: Path, importer: Importer) -> None:  # noqa: F811
    pytest.importorskip("accelerate")
    with_patched(tmp_path, "mixed")
    train = importer(export(tmp_path, "mixed", "accelerate", "train_accelerate.py"))
    accelerator = train.make_accelerator()
    assert accelerator.native_amp
    assert numbers(accelerator.scaler) == TUNED
    model = train.make_model()
    model, optimizer = accelerator.prepare(model, train.make_optimizer(model.parameters()))
    check(model, lambda: train.train(accelerator, model, optimizer, train.batches(), steps=1), "mixed")


def test_the_trainer_scales_as_planned(tmp_path: Path, importer: Importer) -> None:  # noqa: F811
    pytest.importorskip("accelerate")
    with_patched(tmp_path, "mixed", plans.TRAINER_MODEL)
    train = importer(export(tmp_path, "mixed", "transformers", "train_trainer.py", plans.TRAINER_MODEL))
    args = train.training_arguments(
        str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=4, report_to=[], disable_tqdm=True,
        save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    ids = torch.arange(64).reshape(8, 8) % 16
    trainer = train.make_trainer([{"ids": row, "labels": row.sum() % 2} for row in ids], args)
    assert numbers(trainer.accelerator.scaler) == TUNED
    check(trainer.model, trainer.train, "mixed")


@pytest.mark.parametrize("name", ["fp8", "mixed"])
def test_torchao_on_the_gpu(name: str, tmp_path: Path, importer: Importer) -> None:  # noqa: F811
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("rowwise FP8 needs compute capability 9.0")
    float8 = importer(export(tmp_path, name, "torchao", "float8.py"))
    model = float8.convert(float8.make_model().cuda())
    ids = torch.arange(128, device="cuda").reshape(16, 8) % 16
    torch.nn.functional.cross_entropy(model(ids).float(), torch.arange(16, device="cuda") % 2).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
