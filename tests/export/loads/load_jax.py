"""jmp: policies by path and the loss scale, through one step that overflows and one that does not."""

import jax.numpy as jnp
import jmp
import loading

DTYPES = {"fp32": jnp.float32, "bf16": jnp.bfloat16, "fp16": jnp.float16, "fp8_e4m3": jnp.bfloat16}

for case in loading.cases():
    exported = case.module("jax_policy")
    for path, site in case.plan.sites.items():
        if path and "#" not in path:
            policy = exported.policy(path)
            assert (policy.param_dtype, policy.compute_dtype) == (jnp.float32, DTYPES[site.format.label])
    scale = exported.loss_scale()
    if not case.plan.scaler.enabled:
        assert isinstance(scale, jmp.NoOpLossScale)
        continue
    assert float(scale.loss_scale) == case.plan.scaler.init_scale
    params = {"w": jnp.ones(2)}

    def update(params, grads):
        return {"w": params["w"] - grads["w"]}

    grads = {"w": scale.scale(jnp.full(2, 0.5))}
    params, scale = exported.step(update, params, grads, scale)
    assert params["w"].tolist() == [0.5, 0.5]
    params, halved = exported.step(update, params, {"w": jnp.array([jnp.inf, 1.0])}, scale)
    assert params["w"].tolist() == [0.5, 0.5]
    assert float(halved.loss_scale) == case.plan.scaler.init_scale / 2
