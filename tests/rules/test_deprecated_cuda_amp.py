"""Corner cases of AMP401, whose fix has to move positional arguments and imports together."""

from __future__ import annotations

import textwrap

import pytest

from amptune.lint.check import TextReport, report_text
from amptune.lint.fixing import fix_until_stable
from amptune.testing import source_rules

NESTED = """\
def f():
    from torch.cuda.amp import common
    from torch.amp import autocast
    return autocast("cuda")
"""
RULES = [rule() for rule in source_rules(["amptune_rules"]) if rule.code == "AMP401"]


def lint(text: str) -> TextReport:
    return report_text("a.py", text, RULES)


def fixed(code: str) -> str:
    result = fix_until_stable("a.py", textwrap.dedent(code), lint, unsafe=False)
    assert not result.left.errors
    return result.text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("autocast()", 'autocast("cuda")'),
        ("autocast(True)", 'autocast("cuda", enabled=True)'),
        ("autocast(use, torch.half)", 'autocast("cuda", enabled=use, dtype=torch.half)'),
        ("autocast(use, torch.half, False)", 'autocast("cuda", enabled=use, dtype=torch.half, cache_enabled=False)'),
        ("autocast(dtype=torch.half)", 'autocast("cuda", dtype=torch.half)'),
        ("autocast(enabled=(a and\n    b))", 'autocast("cuda", enabled=(a and\n    b))'),
        ("autocast(a if b else c)", 'autocast("cuda", enabled=a if b else c)'),
        ("autocast(**options)", 'autocast("cuda", **options)'),
        ("GradScaler()", 'GradScaler("cuda")'),
        ("GradScaler(1024.0, 2.0)", 'GradScaler("cuda", 1024.0, 2.0)'),
        ("GradScaler(\n    1.0,\n    enabled=use,\n)", 'GradScaler(\n    "cuda", 1.0,\n    enabled=use,\n)'),
    ],
)  # fmt: skip
def test_arguments(before: str, after: str) -> None:
    text = "import torch\nfrom torch.cuda.amp import GradScaler, autocast\nx = {}\n"
    result = fixed(text.format(before))
    assert result == text.replace("torch.cuda.amp", "torch.amp").format(after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from torch.cuda.amp import autocast as ac\nac()\n", 'from torch.amp import autocast as ac\nac("cuda")\n'),
        (
            "from torch.cuda.amp import (\n    GradScaler,\n    autocast,\n)\nautocast()\n",
            'from torch.amp import GradScaler, autocast\nautocast("cuda")\n',
        ),
        (
            "def f():\n    from torch.cuda.amp import autocast, common\n    return autocast()\n",
            NESTED,
        ),
        ("import torch.cuda.amp as a\na.GradScaler()\n", 'import torch.amp as a\na.GradScaler("cuda")\n'),
        ("import torch.cuda.amp\ntorch.cuda.amp.autocast()\n", 'import torch.cuda.amp\ntorch.amp.autocast("cuda")\n'),
        ("import torch as t\nt.cuda.amp.autocast()\n", 'import torch as t\nt.amp.autocast("cuda")\n'),
        ("from torch import cuda\ncuda.amp.autocast()\n", None),
        ("import torch.cuda.amp as a\na.autocast()\na.common.f()\n", None),
        ("from torch.cuda.amp import autocast\nautocast()\nclass A(autocast): pass\n", None),
        ("from torch.cuda.amp import autocast\nautocast()\nautocast(*args)\n", None),
        ("from torch.cuda.amp import autocast\nautocast()\n__all__ = [autocast]\n", None),
        ("import torch\ntorch.cuda.amp.autocast(device_type='cuda')\n", None),
        ("import torch\nac = torch.cuda.amp.autocast\nac()\n", None),
    ],
)
def test_imports(before: str, after: str | None) -> None:
    assert lint(before).findings
    assert fixed(before) == (before if after is None else after)


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntry:\n    s = torch.amp.GradScaler()\nexcept ValueError:\n    s = torch.cuda.amp.GradScaler()\n",
        "import torch\nif hasattr(torch.amp, 'GradScaler'):\n    pass\nelse:\n    s = torch.cuda.amp.GradScaler()\n",
        "import torch\ns = torch.amp.GradScaler() if TORCH_2_4 else torch.cuda.amp.GradScaler()\n",
        "import torch\nisinstance(x, torch.cuda.amp.GradScaler)\n",
        "import torch\ndef f(s: torch.cuda.amp.GradScaler) -> torch.cuda.amp.GradScaler: ...\n",
        "import torch\nTABLE = {torch.cuda.amp.autocast: 1}\n",
    ],
)
def test_fallbacks_and_mentions_are_left_alone(code: str) -> None:
    assert lint(code).findings == ()


@pytest.mark.parametrize(
    ("test", "flagged"),
    [
        ("torch.cuda.device_count() > 1", True),
        ("args.gpus > 0", True),
        ("capability >= (8, 0)", True),
        ("torch.__version__ >= '2.4'", False),
        ("TORCH_MAJOR >= 2", False),
        ("not hasattr(torch.amp, 'GradScaler')", False),
        ("IS_OLD", False),
        ("_TORCH_GREATER_EQUAL_2_4", False),
    ],
)
def test_only_a_test_of_the_version_excuses(test: str, flagged: bool) -> None:
    code = f"""
    import torch
    IS_OLD = torch.__version__ < "2.4"
    def make(args, capability):
        if {test}:
            return torch.cuda.amp.GradScaler()
    """
    assert bool(lint(textwrap.dedent(code)).findings) is flagged
