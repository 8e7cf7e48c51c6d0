"""AMP510: JAX trains in float16 without a loss scale."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.source import SourceFile
from amptune_rules.source._identifiers import identifiers

_FLOAT16 = frozenset({"jax.numpy.float16", "numpy.float16"})
_ARRAYS = frozenset(f"jax.numpy.{name}" for name in ("array", "asarray", "zeros", "ones", "zeros_like", "ones_like"))
_GRADIENTS = ("jax.grad", "jax.value_and_grad", "flax.linen.value_and_grad", "flax.nnx.grad", "flax.nnx.value_and_grad",
              "equinox.filter_grad", "equinox.filter_value_and_grad", "haiku.grad", "haiku.value_and_grad")  # fmt: skip
_DTYPES = frozenset({"dtype", "param_dtype", "compute_dtype"})
_POLICY_FLOAT16 = re.compile(r"(?:^|,)\s*(?:c|compute)\s*=\s*(?:float16|f16|half)\b|^(?:float16|f16|half)$")
_NO_TRAINING = ("save", "export", "eval", "predict", "infer", "convert", "sample", "generate", "test")
_LOSS_SCALE = re.compile(r"loss_?scal|dynamic_?scal|scale_loss|grad_?scaler|mixed_precision_grad", re.IGNORECASE)


class JaxFp16NoLossScale(SourceRule):
    """A JAX program takes gradients in float16 and has no loss scale.

    ## What it does
    Flags `jnp.float16` as the `dtype`, `param_dtype` or `compute_dtype` of a call or a module's field, in
    `.astype(...)` and `jnp.asarray(...)`, or a jmp policy that computes in float16, in a file that calls `jax.grad` or
    `value_and_grad` and names no loss scale (`jmp`'s LossScale classes, flax's `DynamicScale`, or anything called so).

    ## Why is this bad
    Gradients under 3e-8 are zero in float16 (under 6e-5 they lose bits), which is where most activations' gradients are
    in practice: layers stop learning without a sign. bfloat16 has the range of float32 and needs no scale.

    ## Example
    ```python
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    model = nn.Dense(512, dtype=jnp.float16)

    def step(params, x):
        return jax.grad(lambda p: model.apply(p, x).sum())(params)
    ```

    ## Use instead
    ```python
    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    model = nn.Dense(512, dtype=jnp.bfloat16)

    def step(params, x):
        return jax.grad(lambda p: model.apply(p, x).sum())(params)
    ```

    ## Fix safety
    No fix: bfloat16 changes the numbers, and a DynamicScale has to be carried in the training state.

    ## References
    - https://github.com/google-deepmind/jmp
    - https://flax.readthedocs.io/en/latest/api_reference/flax.training.html
    """

    code = "AMP510"
    name = "jax-fp16-no-loss-scale"
    severity = Severity.WARNING
    # The gradient functions that torch has not, or has under another spelling.
    keywords = (b"value_and_grad", b"jax.grad", b"jax import grad", b"nnx.grad", b"filter_grad", b"hk.grad")
    requires = (b"jax",)

    INVALID = (
        Example(
            "flax module",
            """\
import jax
import jax.numpy as jnp
import flax.linen as nn

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (3, 3), dtype=jnp.float16)(x)  # <- AMP510@39
        return nn.Dense(10)(x)

@jax.jit
def step(params, x, y):
    return jax.value_and_grad(lambda p: loss(Net().apply(p, x), y))(params)
""",
        ),
        Example(
            "parameters and inputs cast",
            """\
from jax import grad, tree_util
from jax import numpy as np

def step(params, x, loss_fn):
    half = tree_util.tree_map(lambda p: p.astype(np.float16), params)  # <- AMP510
    return grad(loss_fn)(half, x)
""",
        ),
        Example(
            "policy by a string",
            """\
import haiku as hk
import jax
import jmp

policy = jmp.get_policy("params=float32,compute=float16,output=float32")  # <- AMP510
hk.mixed_precision.set_policy(hk.nets.ResNet50, policy)
gradient = jax.grad(loss_fn)
""",
        ),
    )
    VALID = (
        Example(
            "flax's dynamic scale",
            """\
import jax
import jax.numpy as jnp
import flax.linen as nn
from flax.training import dynamic_scale as scales

model = nn.Dense(512, dtype=jnp.float16)
scale = scales.DynamicScale()

def step(params, x):
    return scale.value_and_grad(lambda p: model.apply(p, x).sum())(params), jax.value_and_grad
""",
        ),
        Example(
            "bfloat16",
            """\
import jax
import jax.numpy as jnp
import flax.linen as nn

model = nn.Dense(512, dtype=jnp.bfloat16, param_dtype=jnp.float32)

def step(params, x):
    return jax.value_and_grad(lambda p: model.apply(p, x).sum())(params)
""",
        ),
        Example(
            "float16 only to save and to compare",
            """\
import jax
import jax.numpy as jnp

NAMES = {"half": jnp.float16, "float": jnp.float32}

def step(params, x):
    gradient = jax.grad(loss_fn)(params, x)
    assert x.dtype != jnp.float16
    return gradient

def save(params, path):
    jnp.save(path, params["w"].astype(jnp.float16))
""",
        ),
        Example(
            "no gradient is taken",
            """\
import jax.numpy as jnp
from flax import linen as nn

model = nn.Dense(512, dtype=jnp.float16)  # value_and_grad is in another file
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Uses of float16 in a file that takes gradients."""
        if not source.calls(*_GRADIENTS) and not source.references(*_GRADIENTS):
            return
        if any(_LOSS_SCALE.search(word) for word in identifiers(source)):
            return
        for node in [*self._dtype_uses(source), *self._policies(source)]:
            message = (
                "float16 in a program that takes gradients without a loss scale: gradients under 3e-8 are zero; "
                "use bfloat16, or jmp.DynamicLossScale / flax DynamicScale"
            )
            yield source.finding(self, node, message)

    def _dtype_uses(self, source: SourceFile) -> Iterator[ast.expr]:
        for call in source.nodes(ast.Call):
            values = [keyword.value for keyword in call.keywords if keyword.arg in _DTYPES]
            if isinstance(call.func, ast.Attribute) and call.func.attr == "astype":
                values += call.args[:1]
            elif not _ARRAYS.isdisjoint(source.qualified(call.func)):
                values += call.args[1:2]
            found = next((value for value in values if _is_float16(source, value)), None)
            if found is not None and _may_be_trained(source, call):
                yield found
        for field in source.nodes(ast.AnnAssign):
            cls = source.parent(field)
            named = isinstance(field.target, ast.Name) and field.target.id in _DTYPES
            if named and isinstance(cls, ast.ClassDef) and field.value is not None and _is_float16(source, field.value):
                yield field.value

    def _policies(self, source: SourceFile) -> Iterator[ast.Call]:
        for call in source.calls("jmp.get_policy", "jmp.Policy"):
            text = source.constant(source.argument(call, "policy_name", 0))
            if isinstance(text, str) and _POLICY_FLOAT16.search(text):
                yield call


def _is_float16(source: SourceFile, value: ast.expr) -> bool:
    """Whether the dtype is, or may be, JAX's float16."""
    leaves = source.values(value)
    return any(
        (isinstance(leaf, ast.Constant) and leaf.value == "float16")
        or any(name in _FLOAT16 for name in source.qualified(leaf))
        for leaf in leaves
    )


def _may_be_trained(source: SourceFile, call: ast.Call) -> bool:
    """Whether the call may be part of the training: not one that saves, converts or evaluates."""
    function = source.function_of(call)
    name = function.name.lower() if function is not None else ""
    if any(word in name for word in _NO_TRAINING):
        return False
    outer = [item for item in source.ancestors(call) if isinstance(item, ast.Call)]
    return not any("save" in source.segment(item.func) for item in outer)
