"""Write a plan into the user's file: a marked block, one line where the model is built, and the ops that it pins."""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path

import libcst as cst

from amptune.core.chains import Chains, find_chains
from amptune.core.formats import Format
from amptune.core.opcodes import KEEP, FunctionalOp, find_functional_ops
from amptune.core.ops import op_named
from amptune.core.pins import following_codes, pinned_codes
from amptune.core.plan import BF16_MASTER, INDUCTOR, Plan
from amptune.core.source_names import Names
from amptune.core.spellings import OPERATOR_FUNCTIONS
from amptune.errors import InputError, PlanError
from amptune.patch.bindings import binding_of, changes_model, defines_class, has_subclass
from amptune.patch.block import (
    LocalNames,
    comment_of,
    insert_after,
    insert_block,
    remove_block,
    render_block,
)
from amptune.patch.merge import Merged, OpAt, as_call, merged
from amptune.patch.pins import rewrite_ops
from amptune.patch.spec import PatchSpec
from amptune.patch.structure import ADDED_MARK, Placement, place, remove
from amptune.patch.table import check_table, globs, table_of
from amptune.patch.text import BOM, parse, read_source
from amptune.patch.unpin import OPERATOR_MODULES, unpin


def patch_source(source: str, plan: Plan, spec: PatchSpec) -> str:
    """``source`` with ``plan`` in force; a patch that is in it already is replaced, and nothing else changes.

    Args:
        source: the user's file, with its line endings and byte order mark.
        plan: its module sites become a table; the ops that it pins in the source are pinned where they stand.
        spec: what the file's model is.

    Raises:
        InputError: the file is not Python, has a damaged patch, or does not define what the spec names.
        PlanError: the plan names a site that is gone, or pins an op that cannot be pinned alone.
    """
    bom = BOM if source.startswith(BOM) else ""
    text = unpatch_source(source, spec.path).removeprefix(BOM)
    tree = parse(text, spec.path)
    entries = table_of(plan, spec)
    check_table(entries, plan, spec)
    names = LocalNames.free_in(text)
    pins = pins_of(plan, spec)
    chains = find_chains(text, pins, following_codes(plan, _codes(spec)))
    modules = _modules_for(tree, text, chains.between.union(pins))
    placement = _placement(tree, plan, spec, names)
    decorating = {decorator.partition("(")[0] for decorator in placement.decorators.values()}
    used = {"apply_plan"} | ({"fp32"} if pins else set())
    used |= {name for name in ("loss_in", "masters_in") if getattr(names, name) in decorating}
    block = render_block(plan, entries, names, used=used, imports=modules.imports)
    patched = place(_pin(text, plan, pins, chains, names, modules, spec), placement)
    return bom + _rebind(insert_block(patched, block), placement)


def plain_source(path: Path) -> str:
    """The text of the user's file without its patch.

    Raises:
        InputError: the file cannot be read, or its patch cannot be taken out.
    """
    return unpatch_source(read_source(path)[0], str(path))


def unpatch_source(source: str, path: str = "model.py") -> str:
    """``source`` without its patch; a file that has none is returned as it is.

    Raises:
        InputError: the file is not Python, the markers of the patch are damaged, or a pinned call was edited so that
            it cannot be undone.
    """
    bom = BOM if source.startswith(BOM) else ""
    text, names = remove_block(source.removeprefix(BOM), path)
    parse(text, path)
    if names is None:
        return source
    plain = unpin(text, names.fp32, path)
    return bom + remove(plain, names)


def pins_of(plan: Plan, spec: PatchSpec) -> dict[str, str]:
    """Code of each op that the plan pins in FP32 in the source -> the reason, empty where it is too long to show.

    Raises:
        PlanError: instances of one class disagree about a line, which can be pinned for all of them only.
    """
    codes = _codes(spec)
    pinned = pinned_codes(plan, lambda name: codes.get(name) or name)
    return {code: comment_of(site.why) or comment_of(_why_sensitive(code)) for code, site in pinned.items()}


def _why_sensitive(code: str) -> str:
    return op_named(code.rpartition("#")[2].rpartition(".")[0]).why_sensitive


def _codes(spec: PatchSpec) -> dict[str, str]:
    return {site.id: site.code for site in spec.sites}


def loss_decorator(plan: Plan, names: LocalNames) -> str:
    """What ``loss_fn`` is decorated with; empty where its input is in the right format anyway."""
    lowers = bool(plan.params) or any(site.format is not Format.FP32 for site in plan.sites.values())
    output_may_be_low = lowers if plan.output_format is None else plan.output_format is not Format.FP32
    raises = plan.loss_format is Format.FP32 and output_may_be_low
    if not raises and not plan.loss_compile:
        return ""
    compiled = f", compile=True{_backend(plan)}" if plan.loss_compile else ""
    return f"{names.loss_in}({chr(34) + Format.FP32.label + chr(34) if raises else None}{compiled})"


def _backend(plan: Plan) -> str:
    return "" if plan.backend == INDUCTOR else f", backend={json.dumps(plan.backend)}"


def _optimizer_decorator(plan: Plan, names: LocalNames) -> str:
    return f'{names.masters_in}("{Format.FP32}")' if plan.params == BF16_MASTER else ""


@dataclasses.dataclass(frozen=True)
class _Modules:
    """What torch and operator are called, and the imports that are missing for that."""

    torch: str
    operator: str
    imports: tuple[str, ...]


def _modules_for(tree: ast.Module, text: str, codes: Collection[str]) -> _Modules:
    spellings = {op.spelling for op in find_functional_ops(text) if op.code in codes}
    names = Names(tree)
    plain, taken = OPERATOR_MODULES
    torch, operator = names.name_of("torch"), names.name_of(plain)
    imports: list[str] = []
    if torch is None and any(spelling.startswith(".") for spelling in spellings):
        torch = "amptune_torch" if "torch" in _words(tree) else "torch"
        imports.append("import torch" if torch == "torch" else f"import torch as {torch}")
    if operator != plain and spellings & OPERATOR_FUNCTIONS.keys():
        operator = taken if plain in _words(tree) else plain
        imports.append(f"import {plain}" if operator == plain else f"import {plain} as {taken}")
    return _Modules(torch or "torch", operator or plain, tuple(imports))


def _words(tree: ast.Module) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _pin(
    text: str,
    plan: Plan,
    pins: Mapping[str, str],
    chains: Chains,
    names: LocalNames,
    modules: _Modules,
    spec: PatchSpec,
) -> str:
    if not pins:
        return text

    def wrap(op: FunctionalOp, function: cst.BaseExpression) -> cst.BaseExpression:
        arguments = [cst.Arg(function)]
        if op.code in chains.kept:
            equal = cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace(""))
            arguments.append(cst.Arg(cst.Name("True"), keyword=cst.Name(KEEP), equal=equal))
        return cst.Call(cst.Name(names.fp32), arguments)

    def merge(node: cst.BaseExpression, op_at: OpAt) -> tuple[Merged, cst.Call] | None:
        found = merged(node, op_at, lambda op: op.code in chains.kept)
        if found is None:
            return None
        return found, as_call(found, names.fp32, keep=found.ops[-1].code in chains.kept)

    reasons = {**pins, **dict.fromkeys(chains.between)}
    module, done = rewrite_ops(text, reasons, wrap, merge, torch=modules.torch, operator=modules.operator)
    missed = sorted(set(pins) - set(done))
    if missed:
        raise _cannot_pin(missed[0], text, plan, spec)
    return module.code


def _cannot_pin(code: str, text: str, plan: Plan, spec: PatchSpec) -> PlanError:
    """Why an op of the plan has no place in the file that is patched."""
    site = next((ref for ref in spec.sites if ref.code == code and ref.path), None)
    if site is not None and Path(site.path).resolve() != Path(spec.path).resolve():
        return PlanError(
            f"the plan pins {site.id!r}, whose line stands in {site.path} and not in {spec.path}, the file to patch",
            hint=f"{_as_a_region(site.id, plan)}; or leave the op out, so that it follows its inputs; "
            f"or put a copy of {code.rpartition('#')[0].split('.')[0]} into {spec.path} and pin it there",
        )
    if any(op.code == code for op in find_functional_ops(text)):
        return PlanError(
            f"the plan pins {code}, which {spec.path} writes as an assignment such as `x *= 2`",
            hint="write `x = x * 2` there, or leave the op out of the plan",
        )
    return PlanError(
        f"the plan pins {code}, which {spec.path} does not have as a call that can be pinned",
        hint="the file changed since the plan was made, or the op stands in an f-string: tune again",
    )


def _as_a_region(op: str, plan: Plan) -> str:
    """How the plan computes an op in FP32 whose source is out of reach: with all of the module that holds it."""
    holder = op.partition("#")[0]
    low = [
        name for name, site in plan.sites.items()
        if name.startswith(f"{holder}.") and "#" not in name and site.format is not Format.FP32
    ]  # fmt: skip
    layers = f", and fp32 for {', '.join(low[:3])}{' and its other layers' if len(low) > 3 else ''}" if low else ""
    return f'run {holder or "the model"} in FP32 as a whole: "{op}": {{"format": "fp32", "how": "autocast"}}{layers}'


def _placement(tree: ast.Module, plan: Plan, spec: PatchSpec, names: LocalNames) -> Placement:
    arguments = f"{names.table}{', channels_last=True' if plan.channels_last else ''}"
    if plan.output_format:
        arguments += f', output_format="{plan.output_format}"'
    if plan.params:
        arguments += f', parameters="{Format.BF16}"'
    makes_loss = plan.loss_compile and (spec.loss is None or spec.makes_loss)
    if makes_loss:
        arguments += ", compile_loss=True"
    if plan.compile_parts:
        arguments += f", compile_parts={json.dumps(globs(plan.compile_parts, spec.modules))}"
    if makes_loss or plan.compile_parts:
        arguments += _backend(plan)
    top_class, function = (spec.top_class or "").replace("<locals>.", "") or None, spec.make_model
    if top_class and not defines_class(tree, top_class):
        raise InputError(f"{spec.path} does not define the class {top_class}", hint="it changed since it was tuned")
    if top_class and not (function and changes_model(tree, function)):
        function = None
    elif function:
        top_class = None
    if not top_class and not (function and binding_of(tree, function)):
        raise InputError(f"{spec.path} has neither the model's class nor a function that builds it")
    wanted = {spec.loss: loss_decorator(plan, names), spec.optimizer: _optimizer_decorator(plan, names)}
    decorators = {name: text for name, text in wanted.items() if text and name and binding_of(tree, name)}
    only_exact = bool(top_class) and has_subclass(tree, str(top_class))
    call = f"{names.apply_plan}({{}}, {arguments})"
    return Placement(call, top_class, function, only_exact, decorators)


def _rebind(text: str, placement: Placement) -> str:
    """Lines for functions that the file imports or assigns: loss, optimizer, model. They have no body to write into."""
    tree = ast.parse(text)
    added: list[tuple[int, str]] = []
    for name, decorator in placement.decorators.items():
        found = binding_of(tree, name)
        if found and not found.is_def:
            added.append((found.line, f"{name} = {decorator}({name})  {ADDED_MARK}\n"))
    maker = binding_of(tree, placement.function) if placement.function else None
    if maker and not maker.is_def:
        call = placement.call.format("make(*args, **kwargs)")
        header = f"def {placement.function}(*args, make={placement.function}, **kwargs):  {ADDED_MARK}\n"
        added.append((maker.line, f"\n\n{header}    return {call}.model\n"))
    for line, lines in sorted(added, reverse=True):
        text = insert_after(text, line, lines)
    return text
