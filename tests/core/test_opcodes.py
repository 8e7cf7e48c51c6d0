"""Every call of a functional op is found once, named the same way from the same text, and nothing else is."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amptune.core.opcodes import find_functional_ops

HEADER = "import math\nimport numpy as np\nimport torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n"


def in_forward(body: str, header: str = HEADER, arguments: str = "self, x, y") -> list[str]:
    """Codes found in the body of a forward method, without the ``Net.forward#`` in front."""
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    ops = find_functional_ops(f"{header}class Net(nn.Module):\n    def forward({arguments}):\n{lines}")
    return [op.code.removeprefix("Net.forward#") for op in ops]


@pytest.mark.parametrize(
    ("header", "call", "spelling"),
    [
        ("import torch.nn.functional as F", "F.softmax(x, -1)", "torch.nn.functional.softmax"),
        ("import torch", "torch.softmax(x, -1)", "torch.softmax"),
        ("import torch", "torch.nn.functional.softmax(x, -1)", "torch.nn.functional.softmax"),
        ("import torch as t", "t.softmax(x, -1)", "torch.softmax"),
        ("from torch import nn", "nn.functional.softmax(x, -1)", "torch.nn.functional.softmax"),
        ("from torch import softmax as sm", "sm(x, -1)", "torch.softmax"),
        ("from torch.nn.functional import *", "softmax(x, -1)", "torch.nn.functional.softmax"),
        ("import torch\nact = torch.softmax", "act(x, -1)", "torch.softmax"),
        ("import torch", "torch.special.softmax(x, -1)", "torch.special.softmax"),
        ("import torch", "torch.Tensor.softmax(x, -1)", "torch.Tensor.softmax"),
        ("", "x.softmax(-1)", ".softmax"),
    ],
)
def test_every_spelling_of_softmax_is_found(header, call, spelling):
    (op,) = find_functional_ops(f"{header}\ndef f(x):\n    return {call}\n")
    assert (op.code, op.op, op.spelling) == ("f#softmax.0", "softmax", spelling)
    assert (op.line, op.column, op.end_column) == (header.count("\n") + 3, 12, 12 + len(call))


@pytest.mark.parametrize(
    ("operator", "op"),
    [("@", "matmul"), ("**", "pow"), ("/", "div"), ("*", "mul"), ("+", "add"), ("-", "sub"), ("//", "floor_divide")],
)
def test_operators_are_ops(operator, op):
    assert in_forward(f"return x {operator} y") == [f"{op}.0"]
    assert in_forward(f"x {operator}= y") == [f"{op}.0"]


def test_an_op_keeps_its_code_once_it_is_pinned():
    header = HEADER + "import operator\ntry:\n    from .amptune_runtime import fp32\nexcept ImportError:\n"
    header += "    from amptune_runtime import fp32\n"
    plain = in_forward("return F.softmax(x, -1) + x.softmax(-1) + F.softmax(x ** 2, 0)")
    pinned = "F.softmax(x, -1) + fp32(torch.Tensor.softmax)(x, -1) + fp32(F.softmax)(fp32(operator.pow)(x, 2), 0)"
    assert in_forward(f"return {pinned}", header) == plain


def test_what_a_pinned_function_is_given_stays_a_tensor_or_a_plain_value():
    header = f"from amptune_runtime import fp32\n{HEADER}class Block(nn.Module):\n    def norm(self, y): ...\n"
    plain = in_forward("eps = 2\nreturn torch.exp(x.norm(y.ndim) * self.eps)", header)
    assert plain == ["norm.0", "mul.0", "exp.0"]
    pinned = "fp32(lambda x, ndim, eps: torch.exp(x.norm(ndim) * eps))(x, y.ndim, self.eps)"
    assert in_forward(f"eps = 2\nreturn {pinned}", header) == plain


@pytest.mark.parametrize(
    "expression",
    [
        "math.exp(3)",
        "np.exp(y)",
        "np.linalg.norm(y)",
        "'a b'.split(' ')",
        "[x, y].index(x)",
        "[x] * 3",
        "'%d' % 3",
        "x.shape[0] * x.size(1)",
        "x.shape[-1] ** -0.5",
        "len(x) // 2",
        "self.norm(x)",
        "super().norm(x)",
        "nn.init.normal_(x)",
        "nn.Softmax(dim=-1)(x)",
        "softmax(x)",
        "undefined.thing(x)",
        "f'{x.norm()} {x * 2}'",
    ],
)
def test_what_cannot_be_an_op_on_tensors_is_left_out(expression):
    assert in_forward(f"return {expression}") == []


def test_sizes_are_followed_through_names():
    assert in_forward("B, T, C = x.shape\nhead = C // 4\nscale = head ** -0.5\nreturn x * scale") == ["mul.0"]


def test_a_name_that_may_be_a_tensor_is_not_taken_for_a_size():
    assert in_forward("scale = 1\nif y is not None:\n    scale = y\nreturn scale * scale") == ["mul.0"]
    assert in_forward("pair = (x, y)\na, b = pair\nouts = []\nreturn a * b, outs[0].exp()") == ["mul.0", "exp.0"]


def test_annotated_arguments_are_followed():
    assert in_forward("return n * 2, x * 2", arguments="self, x, n: int") == ["mul.0"]


def test_an_argument_hides_an_import_of_the_same_name():
    (op,) = find_functional_ops("import torch as t\ndef f(t):\n    return t.exp()\n")
    assert op.spelling == ".exp"


def test_a_submodule_called_through_another_object_is_not_a_method():
    source = HEADER + (
        "class Block(nn.Module):\n    def __init__(self):\n        self.norm = nn.LayerNorm(4)\n"
        "def run(block, x):\n    return block.norm(x), x.norm(2), x.norm(dim=-1)\n"
    )
    assert [op.code for op in find_functional_ops(source)] == ["run#norm.0", "run#norm.1"]


def test_ordinals_follow_line_and_column_for_each_op_and_function():
    assert in_forward("a = x.exp() + y.exp()\nreturn a.exp()") == ["exp.0", "exp.1", "add.0", "exp.2"]


@pytest.mark.parametrize(
    ("nested", "inner", "pinned"),
    [
        ("x.exp().exp()", "x.exp()", "fp32(torch.Tensor.exp)(fp32(torch.Tensor.exp)(x))"),
        ("(x.exp() + y).exp()", "x.exp()", "fp32(torch.Tensor.exp)((x.exp() + y))"),
        ("torch.exp(torch.exp(x))", "torch.exp(x)", "fp32(torch.exp)(torch.exp(x))"),
        ("x ** y ** x", "y ** x", "fp32(operator.pow)(x, y ** x)"),
        ("(x ** y) ** x", "x ** y", "fp32(operator.pow)((x ** y), x)"),
    ],
)
def test_an_inner_call_comes_before_the_one_around_it(nested, inner, pinned):
    header = "import operator\nimport torch\nfrom amptune_runtime import fp32\n"
    ops, after = (
        [op for op in find_functional_ops(f"{header}def f(x, y):\n    return {text}\n") if op.op in {"exp", "pow"}]
        for text in (nested, pinned)
    )
    assert [op.end_column - op.column for op in ops] == [len(inner), len(nested)]
    assert [op.code for op in after] == [op.code for op in ops]
    assert after[0].end_column < after[1].end_column


def test_nested_functions_classes_and_methods_are_named_by_their_path():
    source = HEADER + (
        "class A:\n    class B:\n        async def forward(self, x):\n"
        "            def inner(z):\n                return z.exp()\n            return (lambda q: q.log())(x)\n"
    )
    assert [op.code for op in find_functional_ops(source)] == ["A.B.forward.inner#exp.0", "A.B.forward#log.0"]


def test_two_definitions_of_one_name_share_their_numbering():
    source = (
        HEADER + "if torch.cuda.is_available():\n    def f(x): return x.exp()\nelse:\n    def f(x): return x.exp()\n"
    )
    assert [op.code for op in find_functional_ops(source)] == ["f#exp.0", "f#exp.1"]


def test_ops_outside_functions_are_left_out():
    assert find_functional_ops(HEADER + "X = torch.exp(torch.ones(3))\nclass A:\n    y = X.exp()\n") == []


def test_defaults_and_decorators_belong_to_the_function_outside():
    source = HEADER + "def outer(x):\n    def inner(z=x.exp()):\n        return z\n    return inner\n"
    assert [op.code for op in find_functional_ops(source)] == ["outer#exp.0"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_columns_count_characters_in_any_encoding(newline, bom):
    source = bom + newline.join(["import torch", "def f(é):", "    ü = 'ß'; return torch.exp(é)", ""])
    (op,) = find_functional_ops(source)
    assert (op.line, op.column, op.end_column) == (3, 21, 33)


def test_in_place_forms_are_the_same_op_and_an_assignment_cannot_be_pinned():
    ops = find_functional_ops("def f(x):\n    x.exp_()\n    x *= 2\n    return x.exp()\n")
    assert [(op.op, op.pinnable) for op in ops] == [("exp", True), ("mul", False), ("exp", True)]


def test_a_file_that_is_not_python_is_an_error():
    with pytest.raises(SyntaxError):
        find_functional_ops("def f(:\n")


@given(st.lists(st.sampled_from(["x.exp()", "torch.exp(x)", "x @ x", "(x\n ** 2)", "F.softmax(x,\n -1)"]), max_size=8))
def test_positions_point_at_the_text_of_the_call(calls):
    source = HEADER + "def f(x):\n    return [\n" + "".join(f"        {call},\n" for call in calls) + "    ]\n"
    lines = source.split("\n")
    found = find_functional_ops(source)
    assert len(found) == len(calls)
    for op, call in zip(found, calls, strict=True):
        inside = lines[op.line - 1 : op.end_line]
        inside[-1] = inside[-1][: op.end_column - 1]
        inside[0] = inside[0][op.column - 1 :]
        assert ast.dump(ast.parse("(" + "\n".join(inside) + ")")) == ast.dump(ast.parse("(" + call + ")"))
