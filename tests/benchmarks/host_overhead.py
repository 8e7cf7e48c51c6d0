"""What a plan costs the processor in eager mode beside stock autocast: full depth, narrow layers.

    python -m tests.benchmarks.host_overhead [--models vit,bert] [--rounds 20] [--free-kernels] [--out FILE.md]

On a GPU a step takes at least the time in which Python queues its kernels. Here the kernels run on the CPU, on tensors
of at most a few thousand elements, so that a step is mostly Python, dispatcher and autograd: what it costs the host of
a GPU, less the launches themselves. BF16 kernels take a third of it all the same; with --free-kernels the larger ones
compute nothing (it takes a C++ compiler, and losses mean nothing). The ways to train are measured in turns, from the
same weights, in CPU time.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import cProfile
import dataclasses
import gc
import operator
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from amptune import runtime
from amptune.runtime import apply_plan, fp32

REPORT = Path(__file__).parent / "reports" / "host_overhead.md"
WARM_UPS = 3
GROUP_SIZES = ("_GROUP_ELEMENTS", "_FEW_ELEMENTS")
LAUNCH = 4e-3
"""Milliseconds of the processor that queueing a kernel on a GPU takes, beside the dispatch of its op."""
VOCAB, LENGTH, BATCH, WIDTH, HEADS = 64, 8, 2, 64, 8
"""Sizes of the narrow models, in elements; the depth is that of the models that users train."""


class Bottleneck(nn.Module):
    """A residual block of three convolutions, as torchvision's ResNet-50 has it."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
            if stride > 1 or channels != 4 * width
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, 4 * width, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """Its sixteen bottlenecks, with few channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False, padding=1)
        self.bn = nn.BatchNorm2d(8)
        blocks, channels = [], 8
        for stage, (depth, width) in enumerate(zip((3, 4, 6, 3), (2, 4, 4, 8), strict=True)):
            for index in range(depth):
                blocks.append(Bottleneck(channels, width, 2 if stage and not index else 1))
                channels = 4 * width
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(channels, 16)

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) images -> the loss."""
        x = F.relu(self.bn(self.stem(pixel_values)))
        for block in self.blocks:
            x = block(x)
        return {"loss": F.cross_entropy(self.head(x.mean((2, 3))).float(), labels)}


class PinnedBlock(nn.Module):
    """A block with hand-written norm and attention, whose sensitive ops are pinned in FP32 as a patched file has it."""

    def __init__(self, *, pinned: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.softmax: Callable[..., Tensor] = fp32(F.softmax) if pinned else F.softmax
        self.norm: Callable[[Tensor], Tensor] = fp32(self._norm) if pinned else self._norm

    @staticmethod
    def _norm(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)  # amptune: ignore[AMP313] as users write it

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, WIDTH) -> the same shape."""
        q, k, v = self.qkv(self.norm(x)).view(BATCH, LENGTH, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = self.softmax(q @ k.transpose(-1, -2), -1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(BATCH, LENGTH, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm(x) * self.scale.to(x.dtype))))


class Pinned(nn.Module):
    """Twelve of these blocks on embedded tokens."""

    def __init__(self, *, pinned: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(PinnedBlock(pinned=pinned) for _ in range(12))
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """(batch, length) token ids -> the loss."""
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return {"loss": F.cross_entropy(self.head(x).flatten(0, 1).float(), labels.flatten())}


def _vit() -> nn.Module:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(num_labels=16, hidden_size=WIDTH, intermediate_size=2 * WIDTH,
                               num_attention_heads=HEADS, image_size=32, patch_size=16)
    )  # fmt: skip


def _bert() -> nn.Module:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=2 * WIDTH,
                                num_attention_heads=HEADS)
    )  # fmt: skip


def _llama() -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=12,
                                 num_attention_heads=4, num_key_value_heads=4, use_cache=False)
    )  # fmt: skip


def _gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_head=HEADS, n_positions=16, use_cache=False)
    )


def _resnet() -> nn.Module:
    return transformers.ResNetForImageClassification(
        transformers.ResNetConfig(num_labels=16, embedding_size=8, hidden_sizes=[8, 8, 8, 8])
    )


def _tokens() -> dict[str, Tensor]:
    ids = torch.randint(0, VOCAB, (BATCH, LENGTH))
    return {"input_ids": ids, "labels": ids}


def _images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(BATCH, 3, 32, 32), "labels": torch.randint(0, 16, (BATCH,))}


def _small_images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(BATCH, 3, 8, 8), "labels": torch.randint(0, 16, (BATCH,))}


@dataclasses.dataclass(frozen=True)
class Case:
    """One narrow model.

    Attributes:
        make: the model; a planned one has pins in it where they differ.
        batch: keyword arguments of its forward, which returns the loss.
        norms: globs of its norms, for the plan that leaves these in FP32.
        parameters: of the model that this one stands for, less its vocabulary: plans form groups of weights by size.
        planned: the model that the plans are applied to, where it is another.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Tensor]]
    norms: Sequence[str]
    parameters: float
    planned: Callable[[], nn.Module] | None = None


CASES = {
    "vit": Case(_vit, _images, ("**.layernorm*",), 86e6),
    "bert": Case(_bert, _tokens, ("**.LayerNorm",), 86e6),
    "llama": Case(_llama, _tokens, ("**.*norm",), 86e6),
    "gpt2": Case(_gpt2, _tokens, ("**.ln_?", "**.ln_f"), 86e6),
    "resnet": Case(_resnet, _images, ("**.normalization",), 26e6),
    "bottlenecks": Case(ResNet50, _small_images, ("**.bn*",), 26e6),
    "pinned ops": Case(lambda: Pinned(pinned=False), _tokens, (), 86e6, lambda: Pinned(pinned=True)),
}


_on_a_gpu = runtime._saves_launches


def _always(_weight: Tensor) -> bool:
    return True


class Step:
    """Training steps of one model in one way; ``together`` casts the weights of a block at once, as on a GPU."""

    def __init__(
        self, model: nn.Module, batch: Mapping[str, Tensor], *, autocast: bool = False, together: bool = False
    ) -> None:
        self.model = model.train()
        self.batch = batch
        self.autocast = autocast
        self.together = together
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def __call__(self) -> tuple[float, float, float]:
        """CPU milliseconds of forward and loss, of backward, and of the whole step."""
        runtime._saves_launches = _always if self.together else _on_a_gpu
        self.optimizer.zero_grad(set_to_none=True)
        begin = time.process_time()
        with torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext():
            loss: Any = self.model(**self.batch)["loss"]
        middle = time.process_time()
        loss.backward()
        end = time.process_time()
        self.optimizer.step()
        return (middle - begin) * 1e3, (end - middle) * 1e3, (time.process_time() - begin) * 1e3


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one step: CPU milliseconds, their ratio to a step of autocast, and counts of aten ops that a GPU would have a
    kernel to launch for, of autograd nodes and of Python calls."""

    forward: float
    backward: float
    step: float
    ratio: float
    launches: int
    nodes: int
    calls: int

    def queueing(self, stock: Cost) -> float:
        """The ratio to autocast's cost with the launches that a GPU would have."""
        return (self.ratio * stock.step + LAUNCH * self.launches) / (stock.step + LAUNCH * stock.launches)


def ways(case: Case) -> dict[str, Step]:
    """Ways to train one model, from the same weights and on the same batch."""
    torch.manual_seed(0)
    model, batch = case.make(), case.batch()
    planned = case.planned() if case.planned else copy.deepcopy(model)
    planned.load_state_dict(model.state_dict())
    plans = {"plan bf16": {"**": "bf16"}}
    if case.norms:
        plans["plan bf16, norms fp32"] = {"**": "bf16", **dict.fromkeys(case.norms, "fp32")}
    plain = copy.deepcopy(model)
    lowered = {name: value.bfloat16() if value.is_floating_point() else value for name, value in batch.items()}
    steps = {
        "fp32": Step(plain, batch),
        "parameters in bf16": Step(copy.deepcopy(model).bfloat16(), lowered),
        "autocast-bf16": Step(model, batch, autocast=True),
    }
    shrunk = case.parameters / sum(parameter.numel() for parameter in model.parameters())
    for name, plan in plans.items():
        twin = copy.deepcopy(planned)
        with mock.patch.multiple(runtime, **{size: int(getattr(runtime, size) / shrunk) for size in GROUP_SIZES}):
            apply_plan(twin, plan)
        steps[name] = Step(twin, batch)
        steps[f"{name}, as on a GPU"] = Step(copy.deepcopy(twin), batch, together=True)
    return steps


STEPS_A_TURN, STOCK = 4, "autocast-bf16"


def measure(steps: Mapping[str, Step], rounds: int) -> dict[str, Cost]:
    """Costs by way to train: of each turn the fastest step, since what else the machine does only adds to one."""
    turns: dict[str, list[tuple[float, float, float]]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(WARM_UPS):
            step()
    gc.collect()
    gc.freeze()  # what the imports left behind is no step's garbage
    for _ in range(rounds):
        for name, step in steps.items():
            step()  # the caches of the processor hold another model
            turns[name].append(min((step() for _ in range(STEPS_A_TURN)), key=operator.itemgetter(2)))
    costs = {}
    for name, step in steps.items():
        ratio = statistics.median(own[2] / stock[2] for own, stock in zip(turns[name], turns[STOCK], strict=True))
        forward, backward, whole = map(statistics.median, zip(*turns[name], strict=True))
        costs[name] = Cost(forward, backward, whole, ratio, *_counts(step))
    return costs


def _compute_nothing() -> None:
    from torch.utils import cpp_extension

    source = Path(__file__).parent / "free_kernels.cpp"
    cpp_extension.load("free_kernels", [str(source)], is_python_module=False)


class _Launches(TorchDispatchMode):
    """Counts ops that compute or copy, each as one kernel."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        allocates = func._schema.name.startswith(("aten::empty", "aten::new_empty", "aten::detach", "aten::alias"))
        self.count += not (func.is_view or allocates)
        return func(*args, **(kwargs or {}))


def _counts(step: Step) -> tuple[int, int, int]:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    names = [event.name for event in recorded.events()]
    with _Launches() as launches:
        step()
    profiler = cProfile.Profile()
    profiler.runcall(step)
    calls = sum(entry.callcount for entry in profiler.getstats())
    return (
        launches.count,
        sum(name.startswith("autograd::engine::evaluate_function") for name in names),
        calls,
    )


KERNELS = {
    False: "Kernels take part of them, BF16 ones more than FP32 ones.",
    True: "Products, convolutions, attention and norms compute nothing (--free-kernels).",
}


def as_markdown(results: Mapping[str, Mapping[str, Cost]], rounds: int, *, free: bool) -> str:
    """The report."""
    lines = [
        "# What a plan costs the processor in eager mode",
        "",
        "Written by tests/benchmarks/host_overhead.py: full depth, narrow layers, on the CPU with one thread. Times",
        f"are CPU milliseconds, medians of {rounds} turns, of each the fastest of {STEPS_A_TURN} steps; the ratio is",
        "the median of those to autocast's step in the same turn, steadier than the times on a machine that is shared.",
        f"{KERNELS[free]} Parameters in BF16, which cost no casts, are the least that a plan can come to.",
        "On a CPU a plan casts weights one by one. On a GPU it casts those of several layers together, which takes",
        "fewer kernels: launches, a few microseconds each there, are not in the times. They are counted as ops that",
        f"compute or copy, a kernel for each; the last ratio has {LAUNCH * 1e3:.0f} microseconds each in it.",
        "",
        f"- torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}",
        "",
        "| model | way to train | forward | backward | step | of autocast | launches | nodes | calls | with launches |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model, costs in results.items():
        stock = costs[STOCK]
        lines += [
            f"| {model} | {name} | {cost.forward:.2f} | {cost.backward:.2f} | {cost.step:.2f} "
            f"| {cost.ratio:.2f} | {cost.launches} | {cost.nodes} | {cost.calls} | {cost.queueing(stock):.2f} |"
            for name, cost in costs.items()
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default=",".join(CASES), help="names, separated by commas")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--free-kernels", action="store_true", help="large kernels compute nothing; compiles C++")
    parser.add_argument("--out", type=Path, help=f"write the report, such as {REPORT.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = {name: ways(CASES[name]) for name in arguments.models.split(",")}
    if arguments.free_kernels:  # only now: what a layer by hand computes is found by trying
        _compute_nothing()
    results = {name: measure(each, arguments.rounds) for name, each in steps.items()}
    report = as_markdown(results, arguments.rounds, free=arguments.free_kernels)
    print(report)
    if arguments.out:
        arguments.out.write_text(report)


if __name__ == "__main__":
    main()
