"""The patched file runs where amptune is not, and computes bit for bit what the applied plan computes."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from amptune import runtime
from amptune.apply import apply, how_to_apply
from amptune.capture import Capture, Target, TargetSpec, capture, load_target
from amptune.core.formats import Format
from amptune.core.ops import op_named
from amptune.core.plan import Plan, SitePlan
from amptune.patch.instrument import instrument_source
from amptune.patch.output import patched_files
from amptune.patch.spec import PatchSpec

MODEL = '''
"""A transformer block and a convolution, with functional ops in several spellings."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.eps = 1e-6

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        weights = (scores
                   .softmax(-1))
        return x + self.out(weights @ v) * self.scale(v / v.norm() * 4)

    def scale(self, v):
        return torch.rsqrt((v ** 2).mean(-1, keepdim=True) + self.eps)


class Net(nn.Module):
    def __init__(self, width=32, depth=3):
        super().__init__()
        self.embed = nn.Embedding(257, width)
        self.mix = nn.Conv1d(width, width, 3, padding=1)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, 257)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + F.gelu(self.mix(x.transpose(1, 2)).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return F.log_softmax(self.head(x), dim=-1)


def make_model():
    return Net()


def make_batch():
    return torch.randint(0, 257, (2, 12)), torch.randint(0, 257, (2, 12))


def loss_fn(output, batch):
    return F.nll_loss(output.flatten(0, 1), batch[1].flatten())
'''

WITHOUT_AMPTUNE = """
import sys
sys.modules["amptune"] = None  # what import raises ImportError for
import torch
torch.set_num_threads(1)
"""

RUN = """
saved = torch.load("case.pt", weights_only=True)
model = make_model()
model.load_state_dict(saved["state"])
back = model.state_dict()
assert list(back) == list(saved["state"])
for name, value in saved["state"].items():
    assert back[name].dtype == value.dtype and torch.equal(back[name], value), name
output = model(saved["tokens"])
loss = loss_fn(output, (saved["tokens"], saved["targets"]))
loss.backward()
assert output.dtype == saved["output"].dtype, output.dtype
assert torch.equal(output, saved["output"])
assert torch.equal(loss, saved["loss"]), (loss, saved["loss"])
for name, parameter in model.named_parameters():
    assert torch.equal(parameter.grad, saved["grads"][name]), name
print("equal", type(model).__name__)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the user's file, the patched one, and in case.pt what the applied plan computes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("out")
    path = folder / "model.py"
    path.write_text(MODEL, encoding="utf-8")
    target = load_target(TargetSpec(str(path)))
    captured = capture(target, frontends=["record-real"])
    plan = plan_of_everything(captured, target)
    codes = {site.id: site.code for site in captured.graph if site.code}
    trial = load_target(TargetSpec(str(path)), source=instrument_source(MODEL, set(codes.values())))
    torch.save(what_the_plan_computes(trial, plan, codes), folder / "case.pt")
    for name, content in patched_files(path, plan, spec_of_target(target, captured)).items():
        (folder / name).write_bytes(content)
    return folder


def plan_of_everything(captured: Capture, target: Target) -> Plan:
    """bf16 wherever a module can be lowered, FP32 and FP8 in some blocks, every sensitive functional op pinned."""
    model = target.make_model()
    sites: dict[str, SitePlan] = {}
    for site in captured.graph:
        if site.is_module and (how := how_to_apply(model.get_submodule(site.module))):
            sites[site.id] = SitePlan(Format.BF16, how=how, pad=16 if site.id == "head" else 0,
                                      strided=site.id == "head")  # fmt: skip
        elif not site.is_module and op_named(site.op).why_sensitive:
            sites[site.id] = SitePlan(Format.FP32, how="source")
    sites["blocks.1.out"] = SitePlan(Format.FP32)
    sites["blocks.0.qkv"] = SitePlan(Format.FP8_E4M3, scaling="tensorwise")
    sites["blocks.2.qkv"] = SitePlan(Format.FP8_E4M3, scaling="rowwise")
    return Plan(sites)


def spec_of_target(target: Target, captured: Capture) -> PatchSpec:
    modules = target.make_model().named_modules(remove_duplicate=False)
    return PatchSpec.from_sites(
        str(target.path), captured.graph, module_paths=[(name, id(module)) for name, module in modules],
        top_class="Net", make_model="make_model", loss="loss_fn",
    )  # fmt: skip


def what_the_plan_computes(target: Target, plan: Plan, codes: dict[str, str]) -> dict[str, object]:
    torch.manual_seed(0)
    model, (tokens, targets) = target.make_model(), target.make_batch()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    applied = apply(model, plan, codes=codes, source=MODEL)
    output = model(tokens)
    loss = target.loss(runtime.loss_in("fp32")(lambda out: out)(output), (tokens, targets))
    loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    applied.undo()
    return {"state": state, "tokens": tokens, "targets": targets, "output": output.detach(), "loss": loss.detach(),
            "grads": grads}  # fmt: skip


def run_python(folder: Path, *arguments: str) -> str:
    result = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_imported_from_its_folder(folder):
    script = WITHOUT_AMPTUNE + "from model_amptuned import make_model, loss_fn\n" + RUN
    assert run_python(folder, "-c", script) == "equal Net\n"


def test_run_as_a_script(folder):
    text = (folder / "model_amptuned.py").read_text(encoding="utf-8")
    main = "\nif __name__ == '__main__':\n" + textwrap.indent(WITHOUT_AMPTUNE + RUN, "    ")
    (folder / "main.py").write_text(text + main, encoding="utf-8")
    assert run_python(folder, "main.py") == "equal Net\n"


def test_imported_as_part_of_a_package(folder, tmp_path):
    package = tmp_path / "nets" / "small"
    package.mkdir(parents=True)
    (tmp_path / "nets" / "__init__.py").touch()
    (package / "__init__.py").touch()
    for name in ("model_amptuned.py", "amptune_runtime.py"):
        (package / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "case.pt").write_bytes((folder / "case.pt").read_bytes())
    script = WITHOUT_AMPTUNE + "from nets.small.model_amptuned import make_model, loss_fn\n" + RUN
    assert run_python(tmp_path, "-c", script) == "equal Net\n"


def test_ops_that_stand_in_one_another_are_one_function(folder):
    text = (folder / "model_amptuned.py").read_text(encoding="utf-8")
    one = "fp32(lambda v, eps: torch.rsqrt((v ** 2).mean(-1, keepdim=True) + eps))(v, self.eps)"
    assert one in text


def test_the_pins_matter(folder):
    """The test above could not fail if the pinned ops computed the same without their pins."""
    text = (folder / "model_amptuned.py").read_text(encoding="utf-8")
    (folder / "unpinned.py").write_text(text + "\nfp32 = lambda function, keep=False: function\n", encoding="utf-8")
    script = WITHOUT_AMPTUNE + "from unpinned import make_model, loss_fn\n" + RUN
    result = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120)
    assert "AssertionError" in result.stderr


def test_nothing_is_set_at_import_and_flags_are_set_when_asked(folder):
    script = WITHOUT_AMPTUNE + textwrap.dedent(
        """
        torch.set_float32_matmul_precision("medium")
        import model_amptuned
        model_amptuned.Net()
        assert torch.get_float32_matmul_precision() == "medium"
        model_amptuned.set_backend_flags()
        print(torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
        """
    )
    assert run_python(folder, "-c", script) == "highest False\n"


def test_a_runtime_of_another_version_is_refused(folder, tmp_path):
    (tmp_path / "model_amptuned.py").write_bytes((folder / "model_amptuned.py").read_bytes())
    text = (folder / "amptune_runtime.py").read_text(encoding="utf-8")
    changed = text.replace(f'__version__ = "{runtime.__version__}"', '__version__ = "99.0.0"')
    assert changed != text
    (tmp_path / "amptune_runtime.py").write_text(changed, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-c", "import model_amptuned"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.stderr.strip().splitlines()[-1].startswith("RuntimeError: this file was patched for amptune runtime")


def test_loss_in_raises_the_output_and_nothing_else():
    seen = []

    @runtime.loss_in("fp32")
    def loss_fn(output, batch):
        seen.append((output["logits"].dtype, output["ids"].dtype, batch.dtype))
        return output["logits"].sum()

    output = {"logits": torch.ones(2, dtype=torch.bfloat16), "ids": torch.ones(2, dtype=torch.long)}
    loss = loss_fn(output, torch.ones(2, dtype=torch.float16))
    assert seen == [(torch.float32, torch.int64, torch.float16)]
    assert (loss.dtype, loss_fn.__name__) == (torch.float32, "loss_fn")
    assert runtime.loss_in("bf16")(lambda out: out)(torch.ones(1)).dtype == torch.float32


def test_loss_in_takes_a_module_and_refuses_an_unknown_format():
    loss = runtime.loss_in(None)(torch.nn.MSELoss())
    assert loss(torch.ones(2), torch.zeros(2)) == 1
    with pytest.raises(ValueError, match="loss format 'f32' is not one of"):
        runtime.loss_in("f32")
