"""Keras 3: a DTypePolicyMap by layer path, and the LossScaleOptimizer."""

from __future__ import annotations

from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.export.code import dict_literal, python_file
from amptune.export.export import Export, Lost
from amptune.export.model import ModelFile
from amptune.export.view import (
    NO_TORCH,
    execution_lost,
    functions,
    listed,
    modules,
    scale_literal,
    scaler_lost,
    stock_autocast,
)

POLICIES = {
    Format.FP32: "float32",
    Format.BF16: "mixed_bfloat16",
    Format.FP16: "mixed_float16",
    Format.FP8_E4M3: "float8_from_mixed_bfloat16",
    Format.FP8_E5M2: "float8_from_mixed_bfloat16",
}
"""Format -> name of the policy: FP32 variables, computing in the format."""

_FILE = """\
import keras

{policies}

def policy_map():
    \"\"\"Layer path -> policy; give a layer ``dtype=policy_map()[path]``, or apply() before it is built.\"\"\"
    policies = {{path: keras.dtype_policies.get(name) for path, name in POLICIES.items()}}
    default = keras.dtype_policies.get("{default}")
    return keras.dtype_policies.DTypePolicyMap(default_policy=default, policy_map=policies)


def apply(layers):
    \"\"\"Set the policy of each of ``layers`` by its path; before they are built.\"\"\"
    found = policy_map()
    for layer in layers:
        layer.dtype_policy = found[layer.path]


def optimizer(inner):
    \"\"\"The optimizer{scaled}; pass it to compile(auto_scale_loss=False).\"\"\"
    return {optimizer}
"""


def export(plan: Plan, model: ModelFile) -> Export:
    """The map with one entry a module, its path with slashes; the default is FP32, or the format of a stock plan."""
    stock = stock_autocast(plan)
    scaler = plan.scaler
    wrapped = (
        f"keras.optimizers.LossScaleOptimizer(inner, initial_scale={scale_literal(scaler.init_scale)}, "
        f"dynamic_growth_steps={scaler.growth_interval})"
    )
    table = {path.replace(".", "/"): POLICIES[site.format] for path, site in modules(plan).items()}
    code = _FILE.format(
        policies=dict_literal("POLICIES", table),
        default=POLICIES[stock] if stock else "float32",
        scaled=" under the tuned loss scale" if scaler.enabled else ", without a loss scale",
        optimizer=wrapped if scaler.enabled else "inner",
    )
    notes = ("The paths are those of the PyTorch model with / for the dots: your Keras layers must be named alike.",)
    lost = [*_lost(plan), *scaler_lost(scaler, "Keras")]
    return python_file(f"Keras for {model.original}", plan, model, code, lost=lost, notes=notes)


def _lost(plan: Plan) -> list[Lost]:
    lost = []
    fp8 = [path for path, site in modules(plan).items() if site.format.is_fp8]
    if fp8:
        lost.append(
            Lost(
                f"Keras scales FP8 by a history of maxima, not tensorwise or rowwise: {listed(fp8)}",
                "float8_from_mixed_bfloat16 is written; it exists for Dense and EinsumDense.",
            )
        )
    pinned = functions(plan)
    if pinned:
        lost.append(
            Lost(
                f"Keras has policies for layers, not for operations: {listed(pinned)}",
                "Cast there by hand: keras.ops.cast(x, 'float32').",
            )
        )
    return [*lost, *execution_lost(plan, compiling=NO_TORCH, tf32="Set it in the backend.")]
