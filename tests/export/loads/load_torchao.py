"""torchao float8 training, emulated on the CPU."""

import loading
import torch
import torch.nn.functional as F
from torchao.float8.float8_linear import Float8Linear
from torchao.float8.float8_linear_utils import Float8LinearConfig

RECIPES = {"tensorwise": "tensorwise", "rowwise": "rowwise", "rowwise_gw_hp": "rowwise_with_gw_hp"}

for case in loading.cases():
    float8 = case.module("float8")
    model = float8.make_planned()
    planned = {path: site for path, site in case.plan.sites.items() if site.format.is_fp8}
    assert {path for path, module in model.named_modules() if isinstance(module, Float8Linear)} == set(planned)
    outputs = {}
    for path, site in planned.items():
        module = model.get_submodule(path)
        recipe = Float8LinearConfig.from_recipe_name(RECIPES[site.scaling])
        assert module.config.cast_config_input == recipe.cast_config_input
        assert module.config.cast_config_weight == recipe.cast_config_weight
        assert module.config.cast_config_grad_output_for_grad_weight == recipe.cast_config_grad_output_for_grad_weight
        assert module.config.emulate
        module.register_forward_hook(
            lambda _, args, output, path=path, outputs=outputs: outputs.update({path: output.dtype})
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = {path: model.get_submodule(path).weight.detach().clone() for path in planned}

    def step(model=model, optimizer=optimizer):
        ids = torch.arange(128).reshape(16, 8) % 16
        F.cross_entropy(model(ids).float(), torch.arange(16) % 2).backward()
        optimizer.step()

    loading.check(model, step, loading.modules_only(loading.without_fp8(case.plan)))
    assert outputs == dict.fromkeys(planned, torch.bfloat16)
    for path, weight in before.items():
        assert model.get_submodule(path).weight.dtype == torch.float32
        assert not weight.equal(model.get_submodule(path).weight), path
