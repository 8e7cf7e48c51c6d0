"""Which pinned ops hand their FP32 result on: those whose result goes to pinned ops and nowhere else."""

import textwrap

import pytest

from amptune.core.chains import Chains, find_chains
from amptune.core.opcodes import find_functional_ops


def chains(
    body: str, *pins: str, follow: tuple[str, ...] = (), head: str = "x, eps=1e-6"
) -> tuple[list[str], list[str]]:
    text = f"import torch\ndef f({head}):\n{textwrap.indent(body, '    ')}"
    known = {op.code for op in find_functional_ops(text)}
    wanted = [f"f#{pin}" for pin in pins]
    assert set(wanted) <= known
    found = find_chains(text, wanted, [f"f#{code}" for code in follow])
    kept, between = ([code.removeprefix("f#") for code in sorted(codes)] for codes in (found.kept, found.between))
    return kept, between


@pytest.mark.parametrize(
    "body",
    [
        "return torch.mean(torch.pow(x, 2), -1)",
        "return x.pow(2).mean(-1)",
        "return (x ** 2).mean(-1)",
        "return torch.mean(input=x.pow(2), dim=-1)",
        "s = x ** 2\nreturn s.mean(-1)",
        "s: torch.Tensor = x ** 2\nreturn torch.mean(s, -1)",
        "s = x\nif s.mean() > 0:\n    s = s ** 2\nreturn s.mean()",
    ],
)
def test_a_result_for_pinned_ops_alone_is_kept(body: str) -> None:
    pins = sorted(code for code in ("pow.0", "mean.0", "mean.1") if code != "mean.1" or body.count("mean") == 2)
    assert chains(body, *pins) == (["pow.0"], [])


@pytest.mark.parametrize(
    "body",
    [
        "return torch.mean(torch.relu(x.pow(2)), -1)",  # another op between
        "s = x.pow(2)\nreturn s.mean(-1) + s",  # another use
        "s = x.pow(2)\nreturn s.mean(s.shape[-1])",
        "s = x.pow(2)\ng = lambda: s\nreturn s.mean(-1)",  # seen by another scope
        "s = x.pow(2)\ndef g():\n    return s\nreturn s.mean(-1)",
        "s = x.pow(2)\ns += 1\nreturn s.mean(-1)",
        "s = x.pow(2)\ndel s\nreturn x.mean(-1)",
        "global s\ns = x.pow(2)\nreturn s.mean(-1)",
        "s = t = x.pow(2)\nreturn s.mean(-1) + t",
        "s, t = x.pow(2), 1\nreturn s.mean(-1)",
        "if (s := x.pow(2)) is not None: return s.mean(-1)",
        "self.s = x.pow(2)\nreturn self.s.mean(-1)",
        "s = x.pow(2)\nreturn x.mean(-1)",  # nobody uses it
        "s = x.pow_(2)\nreturn s.mean(-1)",  # it is x as well
        "s = torch.pow(x, 2, out=x)\nreturn s.mean(-1)",
        "s = x.pow(2)\nreturn torch.mean(x, -1, out=s)",
        "return torch.mean(*x.pow(2))",
        "return torch.mean(**x.pow(2))",
        "return torch.mean([x.pow(2)][0])",
        "return x.pow(2)[0].mean(-1)",
        "return (x.pow(2) if x is not None else x).mean(-1)",
    ],
)  # fmt: skip
def test_a_result_that_goes_elsewhere_too_is_cast_back(body: str) -> None:
    assert chains(body, "pow.0", "mean.0", head="x, self=None") == ([], [])


def test_only_where_all_that_take_it_are_pinned() -> None:
    body = "s = x.pow(2)\nreturn s.mean(-1) + s.sum(-1)"
    assert chains(body, "pow.0", "mean.0") == ([], [])
    assert chains(body, "pow.0", "mean.0", "sum.0") == (["pow.0"], [])


@pytest.mark.parametrize(
    ("body", "between"),
    [
        ("return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)", ["add.0"]),
        ("return x * torch.rsqrt(x.pow(2).mean(-1) + self.eps)", ["add.0"]),
        ("return x * torch.rsqrt(torch.clamp(x.pow(2).mean(-1), min=-1e-6))", ["clamp.0"]),
        ("v = x.pow(2).mean(-1)\nv = v * 2 + 1\nreturn x / torch.rsqrt(v)", ["add.0", "mul.0"]),
    ],
)
def test_arithmetic_with_numbers_between_pinned_ops_is_computed_with_them(body: str, between: list[str]) -> None:
    kept, found = chains(body, "pow.0", "mean.0", "rsqrt.0", head="self, x, eps=1e-6")
    assert (kept, found) == (sorted(["pow.0", "mean.0", *between]), between)


@pytest.mark.parametrize(
    ("body", "pins", "follow"),
    [
        ("return torch.rsqrt(x.mean(-1) + y)", ("mean.0", "rsqrt.0"), ()),  # y may be a tensor
        ("return torch.rsqrt(x.mean(-1) + eps)", ("mean.0", "rsqrt.0"), ("add.0",)),  # the plan says what add does
        ("return torch.rsqrt(x.mean(-1) + eps)", ("mean.0",), ()),
        ("return torch.rsqrt(x + eps) + x.mean(-1)", ("mean.0", "rsqrt.0"), ()),  # nothing pinned before it
        ("v = x.mean(-1) + eps\nreturn torch.rsqrt(v) + v", ("mean.0", "rsqrt.0"), ()),
    ],
)  # fmt: skip
def test_what_else_stands_there_follows_its_inputs(body: str, pins: tuple[str, ...], follow: tuple[str, ...]) -> None:
    assert chains(body, *pins, follow=follow, head="x, y, eps=1e-6") == ([], [])


def test_a_patched_and_a_plain_file_have_the_same_chains() -> None:
    plain = "import torch\ndef f(x):\n    return torch.mean(torch.pow(x, 2), -1)\n"
    patched = (
        "import torch\nfrom amptune_runtime import fp32\n"
        "def f(x):\n    return fp32(torch.mean)(fp32(torch.pow, keep=True)(x, 2), -1)\n"
    )
    pins = ["f#pow.0", "f#mean.0"]
    assert find_chains(plain, pins) == find_chains(patched, pins) == Chains(frozenset({"f#pow.0"}))
