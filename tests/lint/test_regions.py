"""Autocast and no_grad stacks."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from amptune.lint.regions import Region
from tests.lint.helpers import marked, source_of


def region_at(body: str) -> Region | None:
    source = source_of(body)
    return source.autocast(marked(source))


def inside(context: str, before: str = "") -> Region:
    region = region_at(
        f"import torch\nimport functools\nfrom contextlib import nullcontext\n{before}\nwith {context}:\n    HERE(x)"
    )
    assert region is not None
    return region


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ("torch.autocast('cuda')", {"device": "cuda", "dtypes": {"float16"}, "enabled": True}),
        ("torch.autocast('cpu')", {"device": "cpu", "dtypes": {"bfloat16"}}),
        ("torch.autocast('cuda:0', torch.bfloat16)", {"device": "cuda", "dtypes": {"bfloat16"}}),
        ("torch.autocast(device_type=dev, dtype=torch.half)", {"device": None, "dtypes": {"float16"}}),
        ("torch.autocast(dev)", {"device": None, "dtypes": {"?"}}),
        ("torch.amp.autocast('cuda', enabled=False)", {"enabled": False}),
        ("torch.amp.autocast('cuda', torch.half, use)", {"enabled": None}),
        ("torch.cuda.amp.autocast(False)", {"device": "cuda", "enabled": False}),
        ("torch.cuda.amp.autocast(True, torch.bfloat16)", {"dtypes": {"bfloat16"}}),
        ("torch.autocast('cuda') if c else nullcontext()", {"device": "cuda", "certain": False}),
        ("no_op(), torch.autocast('cuda')", {"device": "cuda", "certain": True}),
        ("accelerator.autocast()", {"device": None, "enabled": None, "dtypes": {"?"}}),
    ],
)
def test_fields(context: str, expected: dict[str, Any]) -> None:
    region = inside(context)
    assert {name: getattr(region, name) for name in expected} == expected


def test_contexts_made_elsewhere() -> None:
    assert inside("ctx", "ctx = torch.autocast('cuda', dtype=torch.bfloat16)").dtypes == {"bfloat16"}
    assert inside("ctx()", "ctx = functools.partial(torch.autocast, 'cuda', enabled=False)").enabled is False
    assert inside("ctx()", "def ctx():\n    return torch.autocast('cpu')").device == "cpu"


def test_the_innermost_region_counts() -> None:
    source = source_of("""
        import torch
        with torch.autocast("cuda"):
            with torch.autocast("cuda", enabled=False):
                HERE(x)
    """)
    assert source.in_autocast(marked(source)) is False


def test_where_a_region_ends() -> None:
    decorated = "import torch\n@torch.autocast('cuda')\ndef f(x):\n    HERE(x)\n"
    assert region_at(decorated) is not None
    assert region_at("import torch\nwith torch.autocast('cuda'):\n    def f(x):\n        HERE(x)\n") is None
    assert region_at("import torch\nwith torch.autocast('cuda'):\n    pass\nHERE(x)\n") is None
    assert region_at("import torch\nwith torch.autocast('cuda'), open(HERE(x)):\n    pass\n") is not None
    assert region_at("import torch\nwith open(HERE(x)), torch.autocast('cuda'):\n    pass\n") is None


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("with torch.no_grad():\n    HERE(x)", True),
        ("with torch.inference_mode():\n    HERE(x)", True),
        ("with torch.no_grad():\n    with torch.enable_grad():\n        HERE(x)", False),
        ("with torch.set_grad_enabled(False):\n    HERE(x)", True),
        ("with torch.set_grad_enabled(train):\n    HERE(x)", False),
        ("@torch.no_grad()\ndef f(x):\n    HERE(x)", True),
        ("@torch.inference_mode\ndef f(x):\n    HERE(x)", True),
        ("HERE(x)", False),
    ],
)
def test_no_grad(code: str, expected: bool) -> None:
    source = source_of(f"import torch\n{code}")
    assert source.no_grad(marked(source)) is expected


def test_all_autocasts_of_a_file() -> None:
    source = source_of("""
        import torch
        from torch import autocast as ac
        ctx = torch.autocast("cuda", dtype=torch.bfloat16)
        def f():
            with ac("cpu"), other():
                pass
    """)
    assert [region.device for region in source.region_stacks.autocasts()] == ["cuda", "cpu"]


def test_regions_asked_for_in_different_ways_keep_their_places() -> None:
    source = source_of("import torch\nwith torch.autocast('cuda'):\n    HERE(x)\n")
    (made,) = source.region_stacks.autocasts()
    entered = source.autocast(marked(source))
    assert entered is not None
    assert isinstance(made.node, ast.Call)
    assert isinstance(entered.node, ast.With)


@pytest.mark.parametrize(
    "context",
    [
        "functools.partial(torch.autocast, 'cuda') if amp else nullcontext",
        "functools.partial(torch.autocast, device_type='cuda') if amp else functools.partial(torch.autocast, 'cuda')",
        "functools.partial(torch.autocast, 'cuda')",
        "torch.cuda.amp.autocast if amp else nullcontext",
        "torch.cuda.amp.autocast",
    ],
)
def test_a_maker_of_contexts_that_may_make_another_one(context: str) -> None:
    region = inside("ctx()", f"ctx = {context}")
    assert (region.kind, region.device) == ("autocast", "cuda")
    assert region.certain is ("nullcontext" not in context)


def test_a_fallback_import_that_does_nothing_is_uncertain() -> None:
    before = """
try:
    from torch.cuda.amp import autocast
except ImportError:
    from contextlib import nullcontext as autocast
"""
    assert inside("autocast()", before).certain is False


STACK = """
import torch
from contextlib import ExitStack
with ExitStack() as stack, open(path) as file:
    {before}
    stack.enter_context(torch.no_grad())
    with other:
        HERE(x)
    stack.enter_context(torch.autocast("cpu"))
"""


@pytest.mark.parametrize(
    ("before", "device"),
    [
        ('stack.enter_context(torch.autocast("cuda"))', "cuda"),
        ('cast = stack.enter_context(torch.autocast("cuda"))', "cuda"),
        ('stack.enter_context(torch.autocast("cuda")); stack.enter_context(torch.autocast("xpu"))', "xpu"),
        ('file.enter_context(torch.autocast("cuda"))', "cuda"),
        ('others.enter_context(torch.autocast("cuda"))', None),
        ('stack.push(torch.autocast("cuda"))', None),
        ("stack.enter_context()", None),
        ("pass", None),
    ],
)
def test_contexts_that_an_exit_stack_has_entered(before: str, device: str | None) -> None:
    source = source_of(STACK.format(before=before))
    region = source.autocast(marked(source))
    assert (region.device if region is not None else None) == device
    assert source.no_grad(marked(source))
