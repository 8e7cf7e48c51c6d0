"""FSDP2 on one CPU process: the policy of each block, and what each layer computes in once it is sharded."""

import tempfile

import loading
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from amptune.apply.recorder import recording

store = f"{tempfile.mkdtemp()}/store"
dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8_e4m3": torch.bfloat16}
FLOAT8 = {torch.float8_e4m3fn, torch.float8_e5m2}

for case in loading.cases():
    shard = case.module("shard")
    model, optimizer, *scaler = shard.make_sharded(mesh)
    for path, number_format in shard.BLOCKS.items():
        block = model.get_submodule(path)
        assert isinstance(block, FSDPModule)
        policy = block._get_fsdp_state()._mp_policy
        assert policy.param_dtype == (None if number_format is None else DTYPES[number_format])
        assert policy.cast_forward_inputs is False
    sites = {path: site for path, site in case.plan.sites.items() if "#" not in path}
    ids = torch.arange(32).reshape(4, 8) % 16
    with recording(model, set(sites)) as record:
        loss = F.cross_entropy(model(ids).float(), torch.tensor([0, 1, 0, 1]))
        (scaler[0].scale(loss) if scaler else loss).backward()
    products = [op for op in record.ops if op.is_gemm and op.planned in sites]
    assert {op.planned for op in products if op.phase == "forward"} == {p for p in sites if "fc" in p or p == "head"}
    assert any(op.phase == "backward" for op in products)
    for op in products:
        site = sites[op.planned]
        in_fp8 = bool(op.inputs & FLOAT8)
        # The weight gradient of the scaling that keeps it in high precision is the one product of an FP8 site in BF16.
        high = site.scaling == "rowwise_gw_hp" and op.phase == "backward" and not in_fp8
        assert in_fp8 == (site.format.is_fp8 and not high), op
        assert in_fp8 or op.inputs == {DTYPES[site.format.label]}, op
    outputs = {run.path: run.outputs for run in record.modules if run.path in sites}
    assert outputs == {path: {DTYPES[site.format.label]} for path, site in sites.items()}
    before = model.head.weight.full_tensor().clone()
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad.dtype == torch.float32
    if scaler:
        scaler[0].unscale_(optimizer)
        scaler[0].step(optimizer)
        scaler[0].update()
        assert scaler[0].get_scale() == case.plan.scaler.init_scale, "no step was skipped"
    else:
        optimizer.step()
    assert not before.equal(model.head.weight.full_tensor())

dist.destroy_process_group()
