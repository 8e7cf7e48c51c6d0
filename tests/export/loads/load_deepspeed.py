"""DeepSpeed's engine on one CPU process, started by the lines in the configuration; without ZeRO, and stage 1."""

import json
import os
import socket

import loading
import torch

with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
os.environ |= {
    "DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": str(port), "ACCELERATE_MIXED_PRECISION": "bf16",
}  # fmt: skip

import deepspeed

# Its shared-memory collectives would be compiled first, which takes a compiler and minutes.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed("gloo", verbose=False)

for case in loading.cases():
    config = json.loads((case.folder / "ds_config.json").read_text())
    case.module("net" if case.name.startswith("stock") else "net_amptuned")
    for stage in (0, 1):
        path = case.folder / f"stage{stage}.json"
        path.write_text(
            json.dumps({**config, "zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True})
        )
        space = {}
        lines = "\n".join(config["amptune"]["python"]).replace("ds_config.json", str(path))
        exec(lines, space)
        engine = space["engine"]
        if case.plan.scaler.enabled:
            assert space["scaler"].get_scale() == case.plan.scaler.init_scale
            assert space["scaler"].get_growth_interval() == case.plan.scaler.growth_interval
        before = engine.module.head.weight.detach().clone()
        ids = torch.arange(8).reshape(1, 8) % 16

        def step(engine=engine, ids=ids):
            loss = torch.nn.functional.cross_entropy(engine(ids).float(), torch.tensor([1]))
            engine.backward(loss)
            engine.step()

        loading.check(engine.module, step, case.plan)
        assert not before.equal(engine.module.head.weight), "the step was taken"
