"""JAX: a jmp policy for each module, and jmp's loss scale."""

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

_FILE = """\
import jax.numpy as jnp
import jmp

# Used where POLICIES has no entry.
DEFAULT = jmp.get_policy("{default}")

{policies}

def policy(path):
    \"\"\"The policy of the module at ``path``.\"\"\"
    return jmp.get_policy(POLICIES[path]) if path in POLICIES else DEFAULT


def loss_scale():
    \"\"\"The loss scale to begin with: scale the loss, unscale the gradients, then ``adjust`` it.\"\"\"
    return {scale}
"""

_STEP = """\


def step(update, params, grads, scale):
    \"\"\"``update(params, grads)`` unless a gradient is not finite; returns parameters and the next scale.\"\"\"
    grads = scale.unscale(grads)
    finite = jmp.all_finite(grads)
    return jmp.select_tree(finite, update(params, grads), params), scale.adjust(finite)
"""

_NO_MODULES = (
    "jmp has policies, no modules: in haiku call hk.mixed_precision.set_policy(cls, policy) for a class, elsewhere "
    "policy(path).cast_to_compute(...) at the head of the module."
)


def export(plan: Plan, model: ModelFile) -> Export:
    """``POLICIES`` by module path, and ``loss_scale()``."""
    stock = stock_autocast(plan)
    scaler = plan.scaler
    scale = "jmp.NoOpLossScale()"
    if scaler.enabled:
        scale = (
            f"jmp.DynamicLossScale(jnp.asarray({scale_literal(scaler.init_scale)}), "
            f"period={scaler.growth_interval}, factor=2)"
        )
    table = {path: policy_string(site.format) for path, site in modules(plan).items()}
    code = _FILE.format(
        default=policy_string(stock or Format.FP32), policies=dict_literal("POLICIES", table), scale=scale
    )
    if scaler.enabled:
        code += _STEP
    else:
        code = code.replace("import jax.numpy as jnp\n", "")
    notes = (_NO_MODULES,)
    lost = [*_lost(plan), *scaler_lost(scaler, "jmp.DynamicLossScale", floor=1.0)]
    return python_file(f"jmp for {model.original}", plan, model, code, lost=lost, notes=notes)


def policy_string(number_format: Format) -> str:
    """jmp's string: FP32 parameters, the format for computing, and for the output, which the next module casts."""
    compute = Format.BF16 if number_format.is_fp8 else number_format
    return f"params=float32,compute={compute.torch_name},output={compute.torch_name}"


def _lost(plan: Plan) -> list[Lost]:
    lost = []
    fp8 = [path for path, site in modules(plan).items() if site.format.is_fp8]
    if fp8:
        lost.append(
            Lost(f"jmp has no FP8: {listed(fp8)} compute in BF16", "Use flax.linen.fp8_ops or qwix for these layers.")
        )
    pinned = functions(plan)
    if pinned:
        lost.append(
            Lost(f"jmp has policies for modules, not for operations: {listed(pinned)}", "Cast there with x.astype.")
        )
    return [
        *lost,
        *execution_lost(
            plan, compiling=NO_TORCH, tf32='Set jax.config.update("jax_default_matmul_precision", "tensorfloat32").'
        ),
    ]
