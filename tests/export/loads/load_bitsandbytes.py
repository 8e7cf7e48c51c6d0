"""bitsandbytes' 4-bit layers on the CPU: the configuration, and what each layer computes in."""

import bitsandbytes
import loading
import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8_e4m3": torch.bfloat16}


def quantised(model, skip):
    """The linears of ``model`` as 4-bit layers, as from_pretrained makes them."""
    for path, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and path not in skip:
            layer = bitsandbytes.nn.Linear4bit(module.in_features, module.out_features, quant_type="nf4")
            layer.load_state_dict(module.state_dict())
            model.set_submodule(path, layer)
    return model.to("cpu")


for case in loading.cases():
    exported = case.module("bnb")
    config = exported.quantization_config()
    assert config.load_in_4bit
    assert config.bnb_4bit_compute_dtype == exported.COMPUTE_DTYPE
    skip = config.llm_int8_skip_modules or []
    model = quantised(case.module("net").make_model(), skip)
    count = exported.set_compute_dtypes(model)
    layers = {path: module for path, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    assert count == len(layers) > 0
    model(torch.arange(8).reshape(1, 8))
    for path, layer in layers.items():
        assert layer.compute_dtype == DTYPES[case.plan.sites[path].format.label], path
    assert all(case.plan.sites[path].format.label == "fp32" for path in skip)
