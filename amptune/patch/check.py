"""What has to hold of a patched file before anybody gets it."""

from __future__ import annotations

import ast
import re

from amptune.core.opcodes import find_functional_ops
from amptune.core.plan import Plan
from amptune.patch.block import BEGIN, END
from amptune.patch.rewrite import patch_source, pins_of, unpatch_source
from amptune.patch.spec import PatchSpec
from amptune.patch.table import Entry, check_table, value_of
from amptune.patch.text import BOM


def check_patched(source: str, patched: str, plan: Plan, spec: PatchSpec) -> None:
    """Check that ``patched`` is ``source`` with ``plan`` in force, and nothing else.

    It compiles; without the patch it is the user's file again; patching it once more changes nothing; its table
    resolves to the plan at every module; every pinned op still has its code.

    Raises:
        AssertionError: it is not, which is a defect of ours and never the user's.
    """
    text = patched.removeprefix(BOM)
    compile(text, spec.path, "exec", dont_inherit=True)
    original = unpatch_source(source, spec.path)
    back = unpatch_source(patched, spec.path)
    assert _same(back, original), f"{spec.path}: the patch changed more than its own lines"
    assert patch_source(patched, plan, spec) == patched, f"{spec.path}: patching twice is not patching once"
    check_table(written_table(text), plan, spec)
    codes = {op.code for op in find_functional_ops(text)}
    assert codes >= pins_of(plan, spec).keys(), f"{spec.path}: a pinned op lost its place"


def written_table(text: str) -> list[Entry]:
    """The table of a patched file, read from its text."""
    begin, end = (re.search(rf"^{marker}", text, re.MULTILINE) for marker in (BEGIN, END))
    assert begin, "the block begins with a line of its own"
    assert end, "the block ends with a line of its own"
    block = text[begin.start() : end.start()]
    tables = [node.value for node in ast.parse(block).body if isinstance(node, ast.Assign)]
    assert len(tables) == 1, "the block has one table"
    table: dict[str, str | dict[str, str | int]] = ast.literal_eval(tables[0])
    return [Entry(key, value_of(written)) for key, written in table.items()]


def _same(text: str, original: str) -> bool:
    """Equal, or equal but for spaces that Python does not see (``a** b`` comes back as ``a ** b``)."""
    if text == original:
        return True
    return ast.dump(ast.parse(text.removeprefix(BOM))) == ast.dump(ast.parse(original.removeprefix(BOM)))
