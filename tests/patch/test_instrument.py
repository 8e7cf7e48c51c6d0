"""Trial source: same lines, same results, and the runtime's PINS decide about each op."""

import ast
import types

import pytest
import torch

from amptune import runtime
from amptune.core.finding import Location
from amptune.core.graph import Site
from amptune.core.opcodes import find_functional_ops
from amptune.errors import InputError
from amptune.patch.instrument import instrument_source, pinnable_sites
from tests.patch.cases import goldens

SOURCE = '''\
"""Doc."""
from __future__ import annotations
import torch  # the library
import torch.nn.functional as F

def f(x):
    y = (x
         .exp()
         .sum(-1, keepdim=True))
    if F.softmax(x, -1).max() > 2: return x ** 2
    y.exp_()
    return (x @ x.T).log(), y, [z.sqrt() for z in x]
'''


def run(text: str, name: str = "f"):
    module = types.ModuleType("model")
    exec(compile(text, "model.py", "exec", dont_inherit=True), module.__dict__)
    return getattr(module, name)


def codes_of(text: str) -> list[str]:
    return [op.code for op in find_functional_ops(text)]


def test_every_line_keeps_its_number():
    changed = instrument_source(SOURCE, codes_of(SOURCE))
    assert changed.count("\n") == SOURCE.count("\n")
    before, after = (
        {(type(node).__name__, node.lineno) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)}
        for text in (SOURCE, changed)
    )
    assert before <= after
    assert changed.splitlines()[3:6] == SOURCE.splitlines()[3:6]


def test_every_chosen_op_goes_through_the_lookup_and_no_other():
    codes = [code for code in codes_of(SOURCE) if "exp" in code or "softmax" in code]
    changed = instrument_source(SOURCE, codes)
    looked_up = [
        node.args[0].value
        for node in ast.walk(ast.parse(changed))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_amptune_pinned"
    ]
    assert sorted(looked_up) == sorted(codes)


def test_results_are_the_same_without_pins():
    x = torch.rand(3, 3).bfloat16()
    for ours, theirs in zip(run(instrument_source(SOURCE, codes_of(SOURCE)))(x)[:2], run(SOURCE)(x)[:2], strict=True):
        assert torch.equal(ours, theirs)


def test_a_pin_takes_effect_and_ends(monkeypatch):
    source = "import torch\ndef f(x):\n    return x.exp().sum(-1)\n"
    function = run(instrument_source(source, codes_of(source)))
    x = torch.rand(64).bfloat16()
    with monkeypatch.context() as patched:
        patched.setitem(runtime.PINS, "f#exp.0", "fp32")
        pinned = function(x)
    assert torch.equal(pinned, x.float().exp().bfloat16().sum(-1))
    assert torch.equal(function(x), x.exp().sum(-1))


@pytest.mark.parametrize("source", [golden.source for golden in goldens()])
def test_all_kinds_of_files_compile_and_keep_their_lines(source):
    codes = codes_of(source)
    changed = instrument_source(source, codes)
    compile(changed, "model.py", "exec", dont_inherit=True)
    assert changed.count("\n") == source.count("\n")
    assert (changed == source) == (not [op for op in find_functional_ops(source) if op.pinnable])


def test_a_file_whose_imports_are_guarded_gets_ours_at_its_end():
    source = "try:\n    import torch\nexcept ImportError:\n    raise\ndef f(x):\n    return x.exp()"
    assert torch.equal(run(instrument_source(source, codes_of(source)))(torch.zeros(2)), torch.ones(2))


def test_a_lone_generator_argument_gets_its_parentheses():
    source = "import torch\ndef f(x):\n    return x.sum(i for i in (0, 1))\n"
    compile(instrument_source(source, codes_of(source)), "model.py", "exec", dont_inherit=True)


def test_codes_that_the_file_does_not_have_change_nothing():
    assert instrument_source(SOURCE, ["g#exp.0"]) == SOURCE


def test_a_file_that_is_not_python_is_an_error():
    with pytest.raises(InputError, match="not valid Python"):
        instrument_source("def f(:\n", [])


def test_only_ops_of_the_users_own_file_can_be_pinned(tmp_path):
    path, other = tmp_path / "model.py", tmp_path / "layers.py"
    source = "def f(x):\n    x *= 2\n    return x.exp()\n"
    places = [(path, "f#exp.0"), (other, "f#exp.0"), (path, "f#mul.0"), (path, "f#exp.1"), (None, "f#exp.0")]
    sites = [
        Site(f"{number}#op.0", "exp", "function", "", code=code, location=Location(str(file), 3) if file else None)
        for number, (file, code) in enumerate(places)
    ]
    assert [site.id for site in pinnable_sites(source, path, sites)] == ["0#op.0"]
