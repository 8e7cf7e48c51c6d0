"""Files that people wrote: every op that can be pinned is, and the file comes back as it was."""

import ast
import importlib.util
import random
from pathlib import Path

import pytest

from amptune.core.opcodes import find_functional_ops
from amptune.core.plan import Plan
from amptune.patch.check import check_patched
from amptune.patch.instrument import instrument_source
from amptune.patch.rewrite import patch_source
from amptune.patch.text import read_source
from tests.patch.cases import plan_of, spec_of


def folder_of(package: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def files() -> list[Path]:
    chosen = sorted(folder_of("transformers").glob("models/*/modeling_*.py"))
    own = sorted((folder_of("torch") / "nn" / "modules").glob("[a-z]*.py"))
    return random.Random(0).sample(chosen, 12) + random.Random(0).sample(own, 8)


def case_of(source: str, tree: ast.Module) -> tuple[Plan, object]:
    codes = [op.code for op in find_functional_ops(source) if op.pinnable]
    sites = {"fc": "bf16", **{f"m{n}#op.0": {"format": "fp32", "how": "source"} for n in range(len(codes))}}
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    where = {"top_class": classes[-1], "loss": functions[-1] if functions else None}
    return plan_of(sites), spec_of(sites, codes={f"m{n}#op.0": code for n, code in enumerate(codes)}, **where)


@pytest.mark.full
@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_a_real_file_with_every_op_pinned(path):
    source, _ = read_source(path)
    tree = ast.parse(source)
    if not any(isinstance(node, ast.ClassDef) for node in tree.body):
        return
    plan, spec = case_of(source, tree)
    check_patched(source, patch_source(source, plan, spec), plan, spec)
    changed = instrument_source(source, [site.code for site in spec.sites])
    compile(changed, str(path), "exec", dont_inherit=True)
