"""What the exported file imports: the patched model beside the plan, found by reading it, never by importing it."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

from amptune.core.plan import Plan
from amptune.errors import InputError
from amptune.patch.bindings import binding_of
from amptune.patch.text import BOM, parse, read_source

_HANDED_OVER = ("make_model", "loss_fn", "make_optimizer", "train_batches", "make_batch", "run", "evaluate")


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """The user's model as a module to import.

    Attributes:
        module: name of the patched module, such as ``gpt_amptuned``.
        original: name of the module that it was made from, or of the package's module.
        functions: those of the hand-over functions (``make_model``, ``loss_fn``, ...) that it defines.
        builder: what is called to build the model: ``make_model`` or the model's class.
        original_builder: the same in ``original``.
        notes: what the reader has to know about the file.
    """

    module: str
    original: str
    functions: frozenset[str] = frozenset({"make_model", "loss_fn", "make_batch"})
    builder: str = "make_model"
    original_builder: str = "make_model"
    notes: tuple[str, ...] = ()

    def has(self, function: str) -> bool:
        """Whether the file defines ``function``."""
        return function in self.functions

    def imports(self, *functions: str, original: bool = False) -> str:
        """The import line for the builder and those of ``functions`` that the file has.

        Args:
            functions: hand-over functions, or ``set_backend_flags``, which only the patched file has.
            original: import from the unpatched file.
        """
        builder = self.original_builder if original else self.builder
        names = {builder, *(name for name in functions if self.has(name))}
        if "set_backend_flags" in functions and not original:
            names.add("set_backend_flags")
        return f"from {self.original if original else self.module} import {', '.join(sorted(names, key=str.lower))}"


def model_file(plan: Plan, plan_path: Path) -> ModelFile:
    """What to import for ``plan``: its patched file where it lies beside the plan, else the file it was made from.

    Raises:
        InputError: the file is there but cannot be read, or holds no model.
    """
    target, _, name = plan.target.partition(":")
    if target and not target.endswith(".py"):
        return _package(target, name, plan_path)
    stem = Path(target).stem or "model"
    patched, source = plan_path.parent / f"{stem}_amptuned.py", Path(target or "model.py")
    missing = (_missing(patched.name, plan_path, str(source)),)
    for path in (patched, source, plan_path.parent / source.name):
        if path.is_file():
            return _read(path, stem, name, () if path == patched else missing)
    assumed = f"{missing[0]} Assumed of it: it has make_model, make_batch and loss_fn."
    return ModelFile(patched.stem, stem, notes=(assumed,))


def _package(target: str, name: str, plan_path: Path) -> ModelFile:
    """A callable of a package: what ``amptune apply`` writes for it has one function, make_model."""
    wrapper = f"{name.replace('.', '_') or target.rpartition('.')[2]}_amptuned"
    is_there = (plan_path.parent / f"{wrapper}.py").is_file()
    notes = () if is_there else (_missing(f"{wrapper}.py", plan_path, f"{target}:{name}"),)
    return ModelFile(wrapper, target, frozenset({"make_model"}), original_builder=name.split(".")[0], notes=notes)


def _missing(file: str, plan_path: Path, target: str) -> str:
    command = f"amptune apply {plan_path} {target} --out {plan_path.parent}"
    return f"{file} is not beside the plan: write it there with `{command}`."


def _read(path: Path, stem: str, named: str, notes: tuple[str, ...]) -> ModelFile:
    text, _ = read_source(path)
    tree = parse(text.removeprefix(BOM), str(path))
    functions = frozenset(name for name in _HANDED_OVER if binding_of(tree, name))
    builder = named or ("make_model" if "make_model" in functions else _top_class(tree))
    if not builder:
        raise InputError(f"{path} has neither make_model() nor a model's class", hint="write make_model() in it")
    if builder != "make_model":
        notes = (*notes, f"{builder}() is built without arguments here: give it those that tune was given with --arg.")
    return ModelFile(f"{stem}_amptuned", stem, functions, builder, builder, notes)


def _top_class(tree: ast.Module) -> str:
    """The class that no other class of the file instantiates, as tune finds it; the last one where several are left."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases]
    used = {
        call.func.id
        for cls in classes
        for call in ast.walk(cls)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    }
    used |= {base.id for cls in classes for base in cls.bases if isinstance(base, ast.Name)}
    left = [cls.name for cls in classes if cls.name not in used]
    return left[-1] if left else ""
