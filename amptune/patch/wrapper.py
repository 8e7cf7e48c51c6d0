"""A file of its own for a model that lives in a package, where there is no source of the user's to patch."""

from __future__ import annotations

import dataclasses

from amptune.core.plan import Plan
from amptune.errors import InputError
from amptune.patch.block import RUNTIME
from amptune.patch.check import check_patched
from amptune.patch.output import runtime_text
from amptune.patch.rewrite import patch_source
from amptune.patch.spec import PatchSpec

_WRAPPER = '''\
"""{target}, with its precision plan in force."""

from {module} import {top}


def make_model(*args, **kwargs):
    """A new model; the arguments are those of {name}."""
    return {name}(*args, **kwargs)
'''


def wrapper_files(target: str, plan: Plan, spec: PatchSpec) -> dict[str, bytes]:
    """File name -> content for a target ``package.module:callable``: ``<callable>_amptuned.py`` and the runtime.

    Raises:
        InputError: the target is not written as ``package.module:callable``.
        PlanError: the plan is for another model, or pins an op in source that is not the user's.
    """
    source = wrapper_source(target)
    name = target.rpartition(":")[2].replace(".", "_")
    spec = dataclasses.replace(
        spec, path=f"{name}_amptuned.py", top_class=None, make_model="make_model", loss=None, optimizer=None
    )  # fmt: skip
    patched = patch_source(source, plan, spec)
    check_patched(source, patched, plan, spec)
    return {spec.path: patched.encode(), f"{RUNTIME}.py": runtime_text().encode()}


def wrapper_source(target: str) -> str:
    """A module with a ``make_model`` that builds ``target``, without any plan."""
    module, colon, name = target.partition(":")
    is_dotted = all(part.isidentifier() for part in [*module.split("."), *name.split(".")])
    if not colon or not is_dotted:
        raise InputError(f"{target!r} is not written as package.module:callable")
    return _WRAPPER.format(target=target, module=module, top=name.split(".")[0], name=name)
