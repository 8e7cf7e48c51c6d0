"""What is in the exported files: for every kind of plan each is valid, formatted, clean for our own linter."""

from __future__ import annotations

import ast
import fnmatch
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from amptune.cli import run
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.export.model import model_file
from amptune.export.registry import TARGETS
from amptune.export.targets.torchtitan import filter_fqns
from amptune.runtime import apply_plan

from . import plans
from .conftest import export

PYTHON = [name for name, target in TARGETS.items() if target.file.endswith(".py")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every plan for every target, as ``<plan>_<target>.<suffix>``."""
    folder = tmp_path_factory.mktemp("files")
    for name in plans.PLANS:
        (folder / name).mkdir()
        for target in TARGETS:
            export(folder / name, name, target, f"{name}_{target}{Path(TARGETS[target].file).suffix}")
    return folder


def read(files: Path, name: str, target: str) -> str:
    return (files / name / f"{name}_{target}{Path(TARGETS[target].file).suffix}").read_text()


def constant(text: str, name: str) -> Any:
    """The value of a literal that a Python file assigns at its top."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{name} is not assigned")


def calls(text: str, function: str) -> list[dict[str, Any]]:
    """Keyword arguments of each call of ``function``, evaluated where they are plain."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(function):
            found.append({str(item.arg): ast.unparse(item.value) for item in node.keywords})
    return found


def test_our_linter_finds_nothing(files, capsys):
    assert run(["lint", str(files), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []


def test_python_is_formatted_and_has_no_unused_name(files):
    python = [str(path) for path in files.rglob("*_*.py")]
    assert len(python) == len(PYTHON) * len(plans.PLANS)
    for command in (["format", "--check"], ["check", "--select", "E,F,B,UP"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "120", *python],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize("target", ["pytorch", "lightning", "fsdp2", "apex"])
def test_the_scaler_is_there_with_its_numbers_or_not_at_all(files, target):
    (built,) = calls(read(files, "odd-scaler", target), "GradScaler")
    assert built == {
        "init_scale": "1000.0", "growth_factor": "1.5", "backoff_factor": "0.25", "growth_interval": "7",
    }  # fmt: skip
    assert calls(read(files, "bf16", target), "GradScaler") == []
    assert "scaler" not in ast.unparse(ast.parse(read(files, "bf16", target))).lower()


@pytest.mark.parametrize(
    ("name", "precision", "handlers"),
    [
        ("fp32", "'no'", ()), ("bf16", "'no'", ()), ("mixed", "'fp16'", ("AutocastKwargs", "GradScalerKwargs")),
        ("fp8", "'no'", ()), ("stock-bf16", "'bf16'", ()), ("stock-fp16", "'fp16'", ("GradScalerKwargs",)),
    ],
)  # fmt: skip
def test_accelerate_enters_autocast_for_stock_plans_only(files, name, precision, handlers):
    text = read(files, name, "accelerate")
    (accelerator,) = calls(text, "Accelerator")
    assert accelerator["mixed_precision"] == precision
    for handler in ("AutocastKwargs", "GradScalerKwargs"):
        assert len(calls(text, handler)) == (handler in handlers)
    if "AutocastKwargs" in handlers:
        assert calls(text, "AutocastKwargs") == [{"enabled": "False"}]
    assert ("from net import" in text) == name.startswith("stock")


@pytest.mark.parametrize(
    ("name", "bf16", "fp16", "subclass"),
    [("fp32", False, False, False), ("bf16", False, False, False), ("fp16", False, True, True),
     ("fp8", False, False, False), ("stock-bf16", True, False, False), ("stock-fp16", False, True, True)],
)  # fmt: skip
def test_transformers_has_only_fields_of_version_5(files, name, bf16, fp16, subclass):
    text = read(files, name, "transformers")
    assert constant(text, "PRECISION") == {"bf16": bf16, "fp16": fp16, "tf32": False}
    assert ("class PlanTrainer" in text) == subclass
    assert ("AutocastKwargs" in text) == (name == "fp16")


def test_deepspeed_enables_at_most_one_block(files):
    for name in plans.PLANS:
        config = json.loads(read(files, name, "deepspeed"))
        enabled = [block for block in ("fp16", "bf16", "torch_autocast") if config[block]["enabled"]]
        scaled = plans.PLANS[name].scaler.enabled
        assert enabled == (["torch_autocast"] if scaled or name.startswith("stock") else [])
        if scaled:
            assert config["torch_autocast"]["dtype"] == "float16"
            assert config["fp16"]["hysteresis"] == 1
            assert 2 ** config["fp16"]["initial_scale_power"] <= plans.PLANS[name].scaler.init_scale
        if name == "mixed":
            assert config["torch_autocast"]["lower_precision_safe_modules"] == []


def test_fsdp2_has_a_policy_for_each_block(files):
    assert constant(read(files, "mixed", "fsdp2"), "BLOCKS") == {"blocks.0": "bf16", "blocks.1": None, "blocks.2": None}
    assert constant(read(files, "fp16", "fsdp2"), "BLOCKS") == dict.fromkeys(
        ("blocks.0", "blocks.1", "blocks.2"), "fp16"
    )
    assert set(constant(read(files, "fp32", "fsdp2"), "BLOCKS").values()) == {None}
    assert constant(read(files, "fp8", "fsdp2"), "BLOCKS") == {"blocks.0": "bf16", "blocks.1": None, "blocks.2": None}


def test_torchao_converts_exactly_the_fp8_sites(files):
    text = read(files, "fp8", "torchao")
    assert constant(text, "FLOAT8") == {
        "blocks.1.fc1": "tensorwise", "blocks.1.fc2": "tensorwise", "blocks.2.fc1": "rowwise",
        "blocks.2.fc2": "rowwise_with_gw_hp",
    }  # fmt: skip
    rest = constant(text, "REST")
    assert rest.keys() == set(plans.MODULES) - constant(text, "FLOAT8").keys()
    assert constant(read(files, "mixed", "torchao"), "REST")["blocks.0.fc2"] == {"format": "bf16", "pad": 24}
    assert constant(read(files, "region", "torchao"), "REST")["blocks.1"] == {"format": "bf16", "how": "autocast"}
    assert "gelu" not in read(files, "region", "torchao"), "its region is in the table"
    assert "softmax" in read(files, "mixed", "torchao"), "the op that is pinned in the source is told as lost"


def test_torchtitan_leaves_out_exactly_the_others(files):
    text = read(files, "fp8", "torchtitan")
    filters = constant(text, "FILTER_FQNS")
    fp8 = {path for path, site in plans.PLANS["fp8"].sites.items() if site.format.is_fp8}
    left_out = {path for path in plans.MODULES if any(part in path for part in filters)}
    assert left_out == set(plans.MODULES) - fp8
    assert "no tensorwise recipe" in text


@pytest.mark.parametrize(
    ("wanted", "others"),
    [
        (["layers.1.fc1"], ["layers.0.fc1", "layers.10.fc1", "head"]),
        (["a.fc1", "a.fc2"], ["a.fc3", "b.fc1", "b"]),
        (["0.weight_net"], ["1.weight_net", "0.other"]),
    ],
)
def test_filters_never_match_what_is_wanted(wanted, others):
    filters = filter_fqns(wanted, others)
    assert all(any(part in path for part in filters) for path in others)
    hidden = [path for path in wanted if any(part in path for part in filters)]
    assert hidden == [path for path in wanted if any(other in path for other in others)]


def test_megatrons_matchers_give_each_site_its_recipe(files):
    config = yaml.safe_load(read(files, "fp8", "megatron"))
    for path in plans.MODULES:
        site = plans.PLANS["fp8"].sites[path]
        name = f"decoder.{path}"
        matched = next(item for item in config["matchers"].values() if fnmatch.fnmatch(name, item["pattern"]))
        recipe = config["configs"][matched["config"]]["training_recipe"]
        expected = {None: None, "tensorwise": "tensorwise"}.get(site.scaling, "blockwise")
        assert recipe.get("fp8_quantization_recipe") == expected
    assert "--te-precision-config-file" in read(files, "fp8", "megatron")
    flags = " ".join(read(files, "odd-scaler", "megatron").replace("#", " ").split())
    assert "--fp16 --initial-loss-scale 1000 --min-loss-scale 1.0 --loss-scale-window 7 --hysteresis 1" in flags
    assert "growth_factor 1.5 and backoff_factor 0.25" in flags
    assert "--bf16" in read(files, "bf16", "megatron")
    assert "--bf16" not in read(files, "fp32", "megatron")


def test_swift_never_leaves_fp16_to_be_derived(files):
    for name in plans.PLANS:
        values = yaml.safe_load(read(files, name, "ms-swift"))
        assert {values["fp16"], values["bf16"]} <= {True, False}
        assert not (values["fp16"] and values["bf16"])
        assert "loss_scale" not in values
    assert yaml.safe_load(read(files, "fp8", "ms-swift"))["fp8_recipe"] == "tensorwise"


def test_keras_and_jax_name_every_module(files):
    policies = constant(read(files, "mixed", "keras"), "POLICIES")
    assert policies.keys() == {path.replace(".", "/") for path in plans.MODULES}
    assert policies["blocks/1/fc1"] == "mixed_float16"
    assert policies["head"] == "float32"
    strings = constant(read(files, "mixed", "jax"), "POLICIES")
    assert strings["blocks.1.fc1"] == "params=float32,compute=float16,output=float16"
    assert strings["embed"] == "params=float32,compute=float32,output=float32"
    assert calls(read(files, "odd-scaler", "keras"), "LossScaleOptimizer") == [
        {"initial_scale": "1000.0", "dynamic_growth_steps": "7"}
    ]


IN_PARTS = "Compiling parts of the model by themselves is not part of it: blocks.0, blocks.1"


@pytest.mark.parametrize("target", ["torchtitan", "megatron", "ms-swift", "keras", "jax", "bitsandbytes"])
def test_layout_and_padding_are_told_as_lost(files, target):
    assert "channels_last layout" in read(files, "images", target)
    assert "a multiple of 24" in " ".join(read(files, "mixed", target).replace("#", " ").split())
    assert "Padding" not in read(files, "bf16", target)
    told = " ".join(read(files, "in-parts", target).replace("#", " ").split())
    assert IN_PARTS in told
    assert ("Call compile() of each of these modules" in told) is (target not in ("keras", "jax"))


@pytest.mark.parametrize("target", ["torchao", "transformer-engine"])
def test_parts_that_the_runtime_does_not_compile_are_told_as_lost(files, target):
    assert IN_PARTS in " ".join(read(files, "in-parts", target).replace("#", " ").split())


def test_bitsandbytes_computes_in_the_plans_format(files):
    text = read(files, "mixed", "bitsandbytes")
    assert "COMPUTE_DTYPE = torch.bfloat16" in text
    assert constant(text, "COMPUTE") == {"blocks.1.fc1": "fp16"}
    assert ast.literal_eval(calls(text, "BitsAndBytesConfig")[0]["llm_int8_skip_modules"]) == [
        "embed", "blocks.2.norm", "head",
    ]  # fmt: skip
    assert "COMPUTE_DTYPE = torch.float16" in read(files, "fp16", "bitsandbytes")


@pytest.mark.parametrize(
    ("target", "files", "module", "builder"),
    [
        ("net.py", {"net_amptuned.py": plans.MODEL}, "net_amptuned", "make_model"),
        ("sub/net.py:Net", {"net_amptuned.py": plans.MODEL}, "net_amptuned", "Net"),
        (
            "net.py",
            {"net_amptuned.py": "class A(M): pass\nclass B(M):\n    def f(self): return A()\n"},
            "net_amptuned",
            "B",
        ),
        ("pack.models:build", {"build_amptuned.py": ""}, "build_amptuned", "make_model"),
        ("", {}, "model_amptuned", "make_model"),
    ],
)
def test_the_import_is_what_the_patched_file_has(target, files, module, builder, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    found = model_file(Plan(target=target), tmp_path / "plan.json")
    assert (found.module, found.builder) == (module, builder)
    is_there = bool(files)
    assert any("not beside the plan" in note for note in found.notes) != is_there


def test_what_the_file_does_not_have_is_not_imported(tmp_path):
    (tmp_path / "net_amptuned.py").write_text("class Net(Module): pass\ndef make_batch(): ...\n")
    found = model_file(Plan(target="net.py"), tmp_path / "plan.json")
    assert found.imports("loss_fn", "make_batch", "evaluate") == "from net_amptuned import make_batch, Net"


def test_a_plan_of_fp16_without_a_scaler_is_noted(tmp_path, capsys):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(Plan(sites={"head": SitePlan(Format.FP16)}).to_json("t")))
    assert run(["export", str(path), "--to", "pytorch"]) == 0
    assert "scaler is off" in capsys.readouterr().err


class Scaled(nn.Module):
    """A layer, and a gain that no plan names."""

    def __init__(self, *, has_gain: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.gain = nn.Parameter(torch.ones(8)) if has_gain else 1.0

    def forward(self, x):
        return self.gain * self.fc(x)


@pytest.mark.parametrize("has_gain", [True, False])
def test_fsdp2_gathers_nothing_in_16_bits_that_a_region_alone_reaches(files, has_gain):
    wanted = ("DTYPES", "FP32_PARAMETERS", "policy_of", "torch", "nn", "MixedPrecisionPolicy")
    tree = ast.parse(read(files, "mixed", "fsdp2"))
    tree.body = [node for node in tree.body if not _names(node).isdisjoint(wanted)]
    found: dict[str, Any] = {}
    exec(compile(tree, "shard.py", "exec"), found)
    model = nn.Sequential(Scaled(has_gain=has_gain))
    apply_plan(model, {"0": {"format": "bf16", "how": "autocast"}, "0.fc": "bf16"})
    assert found["policy_of"](model[0], "bf16").param_dtype == (None if has_gain else torch.bfloat16)


def _names(node: ast.stmt) -> set[str]:
    """What a statement defines."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    return {target.id for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)}
