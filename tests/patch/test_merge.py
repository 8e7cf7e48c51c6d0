"""Pinned ops that stand in one another become one function where that means the same, and come back as they were."""

import pytest

from amptune.errors import InputError
from amptune.patch.check import check_patched
from amptune.patch.rewrite import patch_source, unpatch_source
from tests.patch.cases import plan_of, spec_of

SOURCE = """\
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear(8, 8)

    def forward(self, x, y):
        return {}
"""
PIN = {"format": "fp32", "how": "source"}


def patched_return(expression: str, *ops: str) -> str:
    """What is returned in the patched file, which is checked: it can be taken back, and patched again."""
    source = SOURCE.format(expression)
    names = [f"#{op}" for op in ops]
    plan = plan_of({"a": "bf16", **dict.fromkeys(names, PIN)})
    spec = spec_of({"a": "bf16", **dict.fromkeys(names, PIN)}, codes={name: f"Net.forward{name}" for name in names},
                   modules=["a"], top_class="Net")  # fmt: skip
    patched = patch_source(source, plan, spec)
    check_patched(source, patched, plan, spec)
    assert unpatch_source(patched) == source
    (line,) = (line for line in patched.splitlines() if line.startswith("        return "))
    return line.removeprefix("        return ").partition("  # ")[0]


@pytest.mark.parametrize(
    ("expression", "ops", "written"),
    [
        ("torch.rsqrt(x.pow(2))", ("pow.0", "rsqrt.0"), "fp32(lambda x: torch.rsqrt(x.pow(2)))(x)"),
        ("y * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)", ("pow.0", "mean.0", "add.0", "rsqrt.0"),
         "y * fp32(lambda x, eps: torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))(x, self.eps)"),
        ("torch.exp(x ** 2 / y ** 2)", ("pow.0", "pow.1", "div.0", "exp.0"),
         "fp32(lambda x, y: torch.exp(x ** 2 / y ** 2))(x, y)"),
        ("(x.exp() + y).log() - 1", ("exp.0", "add.0", "log.0"), "fp32(lambda x, y: (x.exp() + y).log())(x, y) - 1"),
        ("torch.mean(input=x ** 2, dim=-1)", ("pow.0", "mean.0"),
         "fp32(lambda x: torch.mean(input=x ** 2, dim=-1))(x)"),
    ],
)  # fmt: skip
def test_several_ops_are_one_function(expression: str, ops: tuple[str, ...], written: str) -> None:
    assert patched_return(expression, *ops) == written


@pytest.mark.parametrize(
    ("expression", "ops"),
    [
        ("torch.rsqrt(x)", ("rsqrt.0",)),
        ("torch.rsqrt(x[0].pow(2))", ("pow.0", "rsqrt.0")),  # x[0] may be a tensor, which has to be cast up
        ("torch.rsqrt(self.a(x).pow(2))", ("pow.0", "rsqrt.0")),
        ("torch.sum(x.exp(), -1, dtype=torch.float32)", ("exp.0", "sum.0")),  # the dtype decides of the result
        ("torch.rsqrt(torch.pow(*x))", ("pow.0", "rsqrt.0")),
        ("torch.rsqrt(x.eps ** 2 / y.eps ** 2)", ("pow.0", "pow.1", "div.0", "rsqrt.0")),  # two would have one name
        ("torch.nn.functional.mse_loss(x ** 2, y)", ("pow.0", "mse_loss.0")),  # a loss stays in FP32
        ("(x ** 2).exp_()", ("pow.0", "exp.0")),
        ("y.dot(x.exp().to(y.dtype))", ("exp.0", "to.0", "dot.0")),  # a cast has a result of its own format
    ],
)  # fmt: skip
def test_what_would_mean_something_else_is_pinned_one_by_one(expression: str, ops: tuple[str, ...]) -> None:
    written = patched_return(expression, *ops)
    assert written.count("fp32(") == len(ops)
    assert "lambda" not in written


def test_an_edited_function_comes_back_as_it_now_reads() -> None:
    plan, spec = _case()
    patched = patch_source(SOURCE.format("torch.rsqrt(x.pow(2))"), plan, spec)
    edited = patched.replace("x.pow(2)", "x.pow(4)")
    assert unpatch_source(edited) == SOURCE.format("torch.rsqrt(x.pow(4))")


def test_a_function_edited_so_that_precedence_would_change_is_refused() -> None:
    plan, spec = _case()
    patched = patch_source(SOURCE.format("torch.rsqrt(x.pow(2)) * y"), plan, spec)
    edited = patched.replace("torch.rsqrt(x.pow(2))", "torch.rsqrt(x.pow(2)) + 1")
    with pytest.raises(InputError, match="was edited so that it cannot be undone"):
        unpatch_source(edited)


def _case():
    sites = {"a": "bf16", "#pow.0": PIN, "#rsqrt.0": PIN}
    codes = {"#pow.0": "Net.forward#pow.0", "#rsqrt.0": "Net.forward#rsqrt.0"}
    return plan_of(sites), spec_of(sites, codes=codes, modules=["a"], top_class="Net")
