"""Architecture search with one sampled operation an edge (GDAS), the supernet in BF16. Planted: Gumbel noise of a
uniform number in the format of the logits; one in 256 of BF16's uniform numbers is zero, and log(0) is -inf."""

import torch
import torch.nn as nn
import torch.nn.functional as F

KINDS = ("skip", "conv3", "conv5", "dilated", "pool")


def operation(kind, width):
    if kind == "skip":
        return nn.Identity()
    if kind == "pool":
        return nn.AvgPool2d(3, 1, 1)
    size, dilation = {"conv3": (3, 1), "conv5": (5, 1), "dilated": (3, 2)}[kind]
    pad = dilation * (size - 1) // 2
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(width, width, size, padding=pad, dilation=dilation), nn.GroupNorm(8, width)
    )


def sample(logits, temperature):
    noise = torch.rand_like(logits)
    noise = -torch.log(-torch.log(noise))  # planted: G204
    soft = F.softmax((logits + noise).float() / temperature, dim=-1)
    index = soft.argmax(-1, keepdim=True)
    hard = torch.zeros_like(soft).scatter(-1, index, 1.0)
    return (hard - soft.detach() + soft).to(logits.dtype)


class SuperCell(nn.Module):
    def __init__(self, width, nodes=3):
        super().__init__()
        self.edges = nn.ModuleList(nn.ModuleList(operation(k, width) for k in KINDS) for _ in range(nodes))
        self.alpha = nn.Parameter(1e-3 * torch.randn(nodes, len(KINDS)))

    def forward(self, x):
        weights = sample(self.alpha, 5.0)
        for edge, weight in zip(self.edges, weights, strict=True):
            x = sum(w * op(x) for w, op in zip(weight, edge, strict=True))
        return x


class SuperNet(nn.Module):
    def __init__(self, width=64, classes=16, cells=3):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.cells = nn.ModuleList(SuperCell(width) for _ in range(cells))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.stem(x.to(self.stem.weight.dtype))
        for cell in self.cells:
            x = F.avg_pool2d(cell(x), 2)
        return self.head(x.mean((-2, -1))).float()


def make_model():
    return SuperNet().bfloat16()


def make_batch():
    return torch.randn(16, 3, 32, 32), torch.randint(0, 16, (16,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
