"""The marked block of a patched file: imports from the runtime, the table, the flags. Removed as it was inserted."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import textwrap
from collections.abc import Collection, Iterable, Sequence

from amptune import __version__
from amptune.core.plan import Plan
from amptune.errors import InputError
from amptune.patch.table import Entry, spelled
from amptune.patch.text import newline_of, split_lines

BEGIN = "# >>> amptune"
END = "# <<< amptune"
RUNTIME = "amptune_runtime"
_LINE = 100
_FORMATTED = 88
_WHY = 90
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_IDENTIFIER = re.compile(r"[^\W\d]\w*")


@dataclasses.dataclass(frozen=True)
class LocalNames:
    """What our names are called in one file: as the runtime calls them, unless the user has the name already."""

    apply_plan: str = "apply_plan"
    fp32: str = "fp32"
    loss_in: str = "loss_in"
    masters_in: str = "masters_in"
    require: str = "require"
    table: str = "PRECISION"
    set_backend_flags: str = "set_backend_flags"

    @classmethod
    def free_in(cls, text: str) -> LocalNames:
        """Names that do not occur in ``text``."""
        taken = set(_IDENTIFIER.findall(text))
        names = {field.name: str(field.default) for field in dataclasses.fields(cls)}
        return cls(**{key: _free(name, taken) for key, name in names.items()})


def _free(name: str, taken: Collection[str]) -> str:
    prefix = "AMPTUNE_" if name.isupper() else "amptune_"
    while name in taken:
        name = prefix + name
    return name


def remove_block(text: str, path: str) -> tuple[str, LocalNames | None]:
    """``text`` without the marked block, and the names that the block gave; None where there is no block.

    Raises:
        InputError: a marker stands alone, or our runtime is imported outside the markers.
    """
    lines = split_lines(text)
    starts = [index for index, line in enumerate(lines) if line.startswith(BEGIN)]
    ends = [index for index, line in enumerate(lines) if line.startswith(END)]
    if not starts and not ends:
        if re.search(rf"^\s*(from \.*{RUNTIME} import|import {RUNTIME}\b)", text, re.MULTILINE):
            raise InputError(
                f"{path} imports {RUNTIME} but the lines '{BEGIN}' and '{END}' around it are gone",
                hint="put them back, or start from the file before it was patched",
            )
        return text, None
    if len(starts) != 1 or len(ends) != 1 or ends[0] < starts[0]:
        raise InputError(
            f"{path}: expected one '{BEGIN}' line and one '{END}' line after it",
            hint="put the missing one back, or start from the file before it was patched",
        )
    names = _names_in("".join(lines[starts[0] : ends[0] + 1]))
    blank_above = starts[0] > 0 and not lines[starts[0] - 1].strip()
    return "".join([*lines[: starts[0] - blank_above], *lines[ends[0] + 1 :]]), names


def insert_block(text: str, block: str) -> str:
    """``text`` with the block after its first imports, before any function or class."""
    lines = split_lines(text)
    index = _line_after_imports(ast.parse(text))
    if index and not lines[index - 1].endswith(("\n", "\r")):
        lines[index - 1] += newline_of(text)
    above = [newline_of(text)] if index else []
    return "".join([*lines[:index], *above, block.replace("\n", newline_of(text)), *lines[index:]])


def insert_after(text: str, line: int, added: str) -> str:
    """``text`` with ``added`` after its line number ``line``, or after the block where that comes later."""
    lines = split_lines(text)
    end = next(index for index, content in enumerate(lines, 1) if content.startswith(END))
    index = max(line, end)
    return "".join([*lines[:index], added.replace("\n", newline_of(text)), *lines[index:]])


def render_block(
    plan: Plan, entries: Iterable[Entry], names: LocalNames, *, used: Collection[str], imports: Sequence[str] = ()
) -> str:
    """The block's text, with ``\\n`` line endings.

    Args:
        plan: for what it was measured on and its flags.
        entries: lines of the table.
        names: what our names are called.
        used: fields of ``names`` that the rest of the file uses.
        imports: lines such as ``import operator`` that pinned ops need.
    """
    wanted = [name for name in ("apply_plan", "fp32", "loss_in", "masters_in", "require") if name in {*used, "require"}]
    imported = [_imported(name, getattr(names, name)) for name in wanted]
    flags = f"set_backend_flags as _{names.set_backend_flags}"
    parts = [
        _headline(plan),
        *imports,
        *([""] if imports else []),
        "try:",
        *_import_lines(f".{RUNTIME}", imported),
        *_import_lines(f".{RUNTIME}", [flags]),
        "except ImportError:  # run as a script, or imported from its own folder",
        *_import_lines(RUNTIME, imported),
        *_import_lines(RUNTIME, [flags]),
        f'{names.require}("{__version__}")',
        "",
        "",
        f"def {names.set_backend_flags}() -> None:",
        '    """Call once before training: sets the process-wide TF32 flags to what was measured."""',
        f"    _{names.set_backend_flags}(tf32={plan.tf32})",
        "",
        "",
        *_table_lines(names.table, entries),
        END,
    ]
    return "\n".join(parts) + "\n"


def comment_of(why: str) -> str:
    """``why`` as the text of a comment: one line, or empty when it is too long to stand beside code."""
    short = " ".join(why.split())
    return short if len(short) <= _WHY else ""


def _headline(plan: Plan) -> str:
    where = [str(plan.measured_on[key]) for key in ("gpu", "mode") if plan.measured_on.get(key)]
    torch = plan.measured_on.get("torch")
    where += [f"torch {torch}"] if torch else []
    measured = f", measured on {', '.join(where)}" if where else ""
    parameters = "are in bf16" if plan.params else "keep their dtype"
    text = (
        f"{BEGIN[2:]} {__version__}: the number format that each layer computes in{measured}. A key is a module path, "
        f"* one part of it; the parameters {parameters}. Edit the table freely."
    )
    lines = textwrap.wrap(" ".join(text.split()), _LINE - 2, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"# {line}" for line in lines)


def _imported(name: str, local: str) -> str:
    return name if name == local else f"{name} as {local}"


def _import_lines(module: str, names: Sequence[str]) -> list[str]:
    """The import, laid out as the common formatters do it, so that they leave the block alone."""
    line = f"    from {module} import {', '.join(names)}"
    if len(line) <= _FORMATTED:
        return [line]
    return [f"    from {module} import (", *(f"        {name}," for name in names), "    )"]


def _table_lines(name: str, entries: Iterable[Entry]) -> list[str]:
    lines = [_table_line(entry) for entry in entries]
    return [f"{name} = {{", *lines, "}"] if lines else [f"{name} = {{}}  # no layer is given a format"]


def _table_line(entry: Entry) -> str:
    shown = json.dumps(spelled(entry.value)).replace(": true", ": True")
    line = f"    {json.dumps(entry.key, ensure_ascii=False)}: {shown},"
    why = comment_of(entry.why)
    return f"{line}  # {why}" if why and len(line) + len(why) + 4 <= _LINE + 20 else line


def _names_in(block: str) -> LocalNames:
    """What the block's imports call our names; its own text says it, so a renamed one is found again."""
    try:
        tree = ast.parse(block)
    except SyntaxError as error:
        raise InputError(f"the block between '{BEGIN}' and '{END}' is not valid Python: {error.msg}") from error
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == RUNTIME]
    given = {alias.name: alias.asname or alias.name for node in imports for alias in node.names}
    fields = {field.name for field in dataclasses.fields(LocalNames)} - {"set_backend_flags"}
    return LocalNames(**{name: local for name, local in given.items() if name in fields})


def _line_after_imports(tree: ast.Module) -> int:
    """Number of lines before the block: up to the last import that precedes every definition."""
    last = 0
    for position, statement in enumerate(tree.body):
        if isinstance(statement, _DEFINITIONS):
            break
        is_docstring = position == 0 and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if is_docstring or _imports(statement):
            last = statement.end_lineno or 0
    return last or _first_line(tree)


def _imports(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return True
    guarded = isinstance(statement, (ast.If, ast.Try))
    return guarded and any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.walk(statement))


def _first_line(tree: ast.Module) -> int:
    """Lines above the first statement, for a file without imports or docstring."""
    if not tree.body:
        return 0
    first = tree.body[0]
    decorators = first.decorator_list if isinstance(first, _DEFINITIONS) else []
    return min([first.lineno, *(node.lineno for node in decorators)]) - 1
