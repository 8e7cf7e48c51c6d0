"""Qualified names and values."""

from __future__ import annotations

import ast

import pytest

from tests.lint.helpers import marked, source_of

FALLBACK = """
try:
    from torch.amp import autocast
except ImportError:
    from torch.cuda.amp import autocast
HERE(autocast)
"""


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import torch\nHERE(torch.cuda.amp.autocast)", ("torch.cuda.amp.autocast",)),
        ("import torch.cuda.amp as amp\nHERE(amp.autocast)", ("torch.cuda.amp.autocast",)),
        ("import torch.cuda.amp\nHERE(torch.cuda.amp.autocast)", ("torch.cuda.amp.autocast",)),
        ("from torch import autocast as ac\nHERE(ac)", ("torch.amp.autocast",)),
        ("from torch.amp.autocast_mode import autocast\nHERE(autocast)", ("torch.amp.autocast",)),
        ("import torch as t\nHERE(t.half)", ("torch.float16",)),
        ("from torch.cuda.amp import *\nHERE(GradScaler)", ("torch.cuda.amp.GradScaler",)),
        ("from .amp import autocast\nHERE(autocast)", (".amp.autocast",)),
        ("from . import amp\nHERE(amp.autocast)", (".amp.autocast",)),
        ("import torch\nac = torch.autocast\nHERE(ac)", ("torch.amp.autocast",)),
        ("HERE(print)", ("print",)),
        ("def print(): pass\nHERE(print)", ()),
        ("HERE(unknown.thing)", ()),
        ("def f(torch): HERE(torch.half)", ()),
        ("import torch\ndef f():\n    torch = 3\nHERE(torch.half)", ("torch.float16",)),
        ("import torch\nclass A:\n    torch = 3\n    def f(self): HERE(torch.half)", ("torch.float16",)),
        ("import torch\nx = [torch for torch in y]\nHERE(torch.half)", ("torch.float16",)),
        ("x = y\ny = x\nHERE(x)", ()),
        (
            FALLBACK,
            ("torch.amp.autocast", "torch.cuda.amp.autocast"),
        ),
        (
            "import torch\nclass A:\n    def __init__(self): self.ac = torch.autocast\n    def f(self): HERE(self.ac)",
            ("torch.amp.autocast",),
        ),
        (
            "import torch\nclass B:\n    ac = torch.autocast\nclass A(B):\n    def f(self): HERE(self.ac)",
            ("torch.amp.autocast",),
        ),
        ("def f():\n    global amp\n    import torch.amp as amp\nHERE(amp.autocast)", ("torch.amp.autocast",)),
    ],
)  # fmt: skip
def test_qualified(code: str, names: tuple[str, ...]) -> None:
    source = source_of(code)
    assert source.qualified(marked(source)) == names


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("x = 1\nHERE(x)", ["1"]),
        ("x = 1\nx = 2\nHERE(x)", ["1", "2"]),
        ("x = 1 if c else y\nHERE(x)", ["1", "y"]),
        ("x = a or 2\nHERE(x)", ["a", "2"]),
        ("def f(x): HERE(x)", ["x"]),
        ("x = 1\nx += 2\nHERE(x)", ["x"]),
        ("for x in y: HERE(x)", ["x"]),
        ("a, (b, c) = 1, (2, 3)\nHERE(c)", ["3"]),
        ("a, *b = 1, 2, 3\nHERE(b)", ["b"]),
        ("a, b = f()\nHERE(b)", ["b"]),
        ("d = {'x': 1, 'y': 2}\nHERE(d['y'])", ["2"]),
        ("d = {'x': 1, 'y': 2}\nHERE(d[k])", ["1", "2"]),
        ("def f(): return 3\nHERE(f())", ["3"]),
        ("def f(): yield 3\nHERE(f())", ["f()"]),
        ("class A:\n    n = 4\n    def f(self): HERE(self.n)", ["4"]),
        ("class A:\n    def __init__(self): self.n = 4\n    def f(self): HERE(self.n)", ["4"]),
        ("@dataclass\nclass A:\n    n: int = 4\n    def f(self): HERE(self.n)", ["self.n"]),
        ("class A:\n    n: int = 4\n    def f(self): HERE(self.n)", ["4"]),
        ("if (x := 5): HERE(x)", ["5"]),
        ("x = y\ny = x\nHERE(x)", ["y"]),
        ("with open(p) as x: HERE(x)", ["x"]),
    ],
)  # fmt: skip
def test_values(code: str, values: list[str]) -> None:
    source = source_of(code)
    assert [ast.unparse(value) for value in source.values(marked(source))] == values


def test_long_chains_and_cycles_end() -> None:
    chain = "\n".join(f"a{i} = b{i} if c else a{i + 1}\nb{i} = a{i + 1}" for i in range(300))
    source = source_of(f"{chain}\nHERE(a0)")
    assert source.values(marked(source))
    cycle = source_of("a = f(b).c\nb = g(a).d\nclass A:\n    def m(self): return self.m().m()\nHERE(A().m())")
    assert cycle.values(marked(cycle))


def test_calls_and_references_find_every_spelling() -> None:
    source = source_of("""
        import torch
        import torch.nn.functional as F
        from torch import autocast as ac
        make = torch.autocast
        class A:
            def __init__(self):
                self.context = torch.autocast
            def f(self, x):
                with ac("cuda"), torch.amp.autocast("cuda"), make("cuda"), self.context("cuda"):
                    return F.softmax(x, -1).softmax(0)
        def g(autocast):
            autocast("cuda")
    """)
    assert [source.segment(call.func) for call in source.calls("torch.amp.autocast")] == [
        "ac", "torch.amp.autocast", "make", "self.context",
    ]  # fmt: skip
    assert len(source.calls("torch.nn.functional.softmax")) == 1
    assert len(source.method_calls("softmax")) == 2
    assert len(source.references("torch.amp.autocast")) == 6


def test_arguments() -> None:
    source = source_of("f(1, *rest, 3, k=4)\ng(1, 2, **kw)\nh(1, b=2)")
    f, g, h = source.nodes(ast.Call)
    assert source.constant(source.argument(f, "a", 0)) == 1
    assert source.argument(f, "c", 2) is None
    assert source.constant(source.argument(f, "k")) == 4
    assert [source.has_splat(call) for call in (f, g, h)] == [True, True, False]


def test_definitions() -> None:
    source = source_of("""
        def helper(): pass
        class Base:
            def shared(self): pass
        class A(Base):
            def m(self):
                HERE(self.shared())
        def twice(): pass
        def twice(): pass
        helper(); A().m(); twice(); other()
    """)
    found = {
        source.segment(call.func): function.name
        for call in source.nodes(ast.Call)
        if (function := source.definition(call.func))
    }
    assert found == {"self.shared": "shared", "helper": "helper", "A().m": "m"}
