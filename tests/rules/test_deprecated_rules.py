"""Corner cases of the rules on deprecated names (AMP402 to AMP407)."""

from __future__ import annotations

import textwrap

import pytest

from amptune.core.finding import Finding, Severity
from amptune.lint.check import check_text
from amptune.testing import source_rules

RULES = {rule.code: rule for rule in source_rules(["amptune_rules"])}


def lint(code: str, text: str) -> list[Finding]:
    return check_text("a.py", textwrap.dedent(text), [RULES[code]()])


FLAGGED = {
    "AMP402 long module path": """\
        from torch.cuda.amp.autocast_mode import custom_fwd
        @custom_fwd
        def forward(ctx, x):
            return x
        """,
    "AMP403 module alias": """\
        import apex.amp as amp
        """,
    "AMP403 under an option": """\
        def setup(args):
            if args.fp16:
                from apex import amp
        """,
    "AMP404 when there are several GPUs": """\
        import torch
        if torch.cuda.device_count() > 1:
            torch.backends.cudnn.allow_tf32 = True
        """,
    "AMP404 alias of the backend": """\
        import torch
        flags = torch.backends.cuda.matmul
        flags.allow_tf32 = True
        """,
    "AMP405 read in another function": """\
        import torch
        def setup():
            torch.backends.fp32_precision = "tf32"
        def describe():
            return torch.backends.cuda.matmul.allow_tf32
        """,
    "AMP405 read in the same loop": """\
        import torch
        for precision in ("ieee", "tf32"):
            print(torch.backends.cuda.matmul.allow_tf32)
            torch.backends.cuda.matmul.fp32_precision = precision
        """,
    "AMP406 setter": """\
        import torch
        torch.set_autocast_gpu_dtype(torch.bfloat16)
        """,
    "AMP406 from a C module's state": """\
        import torch
        if torch.is_autocast_xla_enabled():
            pass
        """,
    "AMP407 by name": """\
        import torch
        torch.set_default_tensor_type("torch.cuda.HalfTensor")
        """,
}

CLEAN = {
    "AMP402 name in a version table": """\
        import torch
        TORCH_GE_24 = torch.__version__ >= "2.4"
        if TORCH_GE_24:
            custom_fwd = torch.amp.custom_fwd(device_type="cuda")
        else:
            custom_fwd = torch.cuda.amp.custom_fwd
        """,
    "AMP403 relative module": """\
        from .apex import amp
        amp.initialize()
        """,
    "AMP404 by version words": """\
        import torch
        def setup(is_torch_less_than_29):
            if is_torch_less_than_29():
                torch.backends.cuda.matmul.allow_tf32 = True
        """,
    "AMP405 read before": """\
        import torch
        def setup():
            before = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.fp32_precision = "ieee"
            return before
        """,
    "AMP406 in a handler": """\
        import torch
        try:
            dtype = torch.get_autocast_dtype("cpu")
        except TypeError:
            dtype = torch.get_autocast_cpu_dtype()
        """,
    "AMP407 restored by a context manager": """\
        import contextlib
        import torch
        @contextlib.contextmanager
        def half():
            old = torch.get_default_dtype()
            torch.set_default_dtype(torch.float16)
            yield
            torch.set_default_dtype(old)
        """,
}


@pytest.mark.parametrize("name", FLAGGED)
def test_flagged(name: str) -> None:
    assert len(lint(name[:6], FLAGGED[name])) == 1


@pytest.mark.parametrize("name", CLEAN)
def test_clean(name: str) -> None:
    assert lint(name[:6], CLEAN[name]) == []


def test_apex_severity() -> None:
    optional = "try:\n    from apex import amp\nexcept ImportError:\n    amp = None\n\namp.initialize()\n"
    demanded = "try:\n    from apex import amp\nexcept ImportError:\n    raise\n\namp.initialize()\n"
    assert {finding.severity for finding in lint("AMP403", optional)} == {Severity.INFO}
    assert [finding.severity for finding in lint("AMP403", demanded)] == [Severity.WARNING] * 2


def test_tf32_severity() -> None:
    text = (
        "import torch\ntorch.backends.cuda.matmul.fp32_precision = {}\nprint(torch.backends.cuda.matmul.allow_tf32)\n"
    )
    found = [lint("AMP405", text.format(value))[0].severity for value in ('"tf32"', '"ieee"', "precision")]
    assert found == [Severity.ERROR, Severity.WARNING, Severity.WARNING]


def test_a_tf32_setting_of_another_function_need_not_have_been_made() -> None:
    head = "import torch\ndef fast():\n    torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
    for read in ("torch.backends.cuda.matmul.allow_tf32", "torch.get_float32_matmul_precision()"):
        apart = f"{head}def show():\n    print({read})\n"
        assert [found.severity for found in lint("AMP405", apart)] == [Severity.WARNING]
        together = f"{head}    print({read})\n"
        assert [found.severity for found in lint("AMP405", together)] == [Severity.ERROR]
    flag = (
        f"{head}    torch.set_float32_matmul_precision('highest')\n    print(torch.backends.cuda.matmul.allow_tf32)\n"
    )
    assert [found.severity for found in lint("AMP405", flag)] == [Severity.WARNING]
