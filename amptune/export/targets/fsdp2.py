"""FSDP2: the patched model, sharded with a MixedPrecisionPolicy for each block."""

from __future__ import annotations

from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.export.code import dict_literal, optimizer_of, python_file, scaler_arguments
from amptune.export.export import Export, Lost
from amptune.export.model import ModelFile
from amptune.export.view import HALF, blocks, by_format, listed, modules, stock_autocast

_FILE = """\
import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

{imports}

{table}
DTYPES = {{"bf16": torch.bfloat16, "fp16": torch.float16}}
# Computed from FP32 parameters whatever the plan says: rows are gathered, statistics taken, in FP32.
FP32_PARAMETERS = (nn.Embedding, nn.EmbeddingBag, nn.modules.batchnorm._NormBase)


def policy_of(block, number_format):
    \"\"\"Parameters are gathered in 16 bits where every layer of the block casts its own to just that format.

    The layers cast their inputs themselves, so FSDP must not; gradients are reduced in FP32, as they were measured.
    \"\"\"
    owners = [module for module in block.modules() if next(module.parameters(recurse=False), None) is not None]
    sites = [getattr(module, "_amptune", None) for module in owners]
    formats = {{site.format if site is not None and site.is_leaf else None for site in sites}}  # but a region
    fp32 = number_format is None or any(isinstance(module, FP32_PARAMETERS) for module in owners)
    if fp32 or formats != {{number_format}}:
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    dtype = DTYPES[number_format]
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)


def shard(model, mesh=None):
    \"\"\"``fully_shard`` on each block, then on the rest. The plan must be in the model before.\"\"\"
    for path, number_format in BLOCKS.items():
        block = model.get_submodule(path)
        fully_shard(block, mesh=mesh, mp_policy=policy_of(block, number_format))
    return fully_shard(model, mesh=mesh, mp_policy=policy_of(model, {root}))


def make_sharded(mesh=None):
    \"\"\"The sharded model, its optimizer{and_scaler}. torch.distributed is initialised before.\"\"\"
    set_backend_flags()
    model = shard({builder}(), mesh)
    optimizer = {optimizer}
{scaler}"""

_SCALER = """\
    # torch's plain GradScaler: its search for infinities is reduced over the shards of an FSDP2 model.
    scaler = torch.amp.GradScaler(
        next(model.parameters()).device.type,
        {arguments},
    )
    return model, optimizer, scaler
"""


def export(plan: Plan, model: ModelFile) -> Export:
    """A ``shard`` function; blocks of one 16-bit format are gathered in it, the others in FP32."""
    table = {path: _one_format(formats) for path, formats in blocks(plan).items()}
    arguments = scaler_arguments(plan.scaler).replace(", ", ",\n        ")
    scaled = plan.scaler.enabled
    code = _FILE.format(
        imports=model.imports("make_optimizer", "set_backend_flags"),
        table=dict_literal("BLOCKS", table, "the one format of all layers of a block; None where they differ, or FP32"),
        root=repr(_root_format(plan, table)).replace("'", '"'),
        and_scaler=" and loss scaler" if scaled else "",
        builder=model.builder,
        optimizer=optimizer_of(model),
        scaler=_SCALER.format(arguments=arguments) if scaled else "    return model, optimizer\n",
    )
    notes = (f"{model.module}.py and amptune_runtime.py belong beside this file.",)
    return python_file(f"FSDP2 for {model.original}", plan, model, code, lost=_lost(plan, table), notes=notes)


def _one_format(formats: set[Format]) -> str | None:
    (first, *others) = formats
    return first.label if not others and first in HALF else None


def _root_format(plan: Plan, table: dict[str, str | None]) -> str | None:
    """The one format of the layers outside all blocks."""
    rest = {
        site.format for path, site in modules(plan).items() if not any(path.startswith(f"{block}.") for block in table)
    }
    return _one_format(rest) if rest else None


def _lost(plan: Plan, table: dict[str, str | None]) -> list[Lost]:
    lost = []
    mixed = [path for path, label in table.items() if label is None]
    if mixed:
        inside = {path: site for path, site in modules(plan).items() if path.startswith(f"{mixed[0]}.")}
        lost.append(
            Lost(
                "A MixedPrecisionPolicy holds for a whole block, and these have more than one format or FP32: "
                f"{listed(mixed)} ({mixed[0]}: {by_format(inside)})",
                "Their parameters are gathered in FP32 and cast by the patched layers: the same numbers, more traffic.",
            )
        )
    if not table:
        lost.append(
            Lost(
                "The plan has no repeated blocks",
                "The model is sharded as one unit: add fully_shard calls for its large parts.",
            )
        )
    if stock_autocast(plan):
        lost.append(
            Lost(
                "A policy casts whole modules, autocast casts by operation",
                "The region of the patched model does it; parameters are gathered in FP32.",
            )
        )
    return lost
