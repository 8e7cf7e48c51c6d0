"""A table read in steps, each through a sparse mask of its columns (TabNet), sparsemax by hand. Careful."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def sparsemax(z):
    z = z.float()
    z = z - z.amax(-1, keepdim=True)
    ordered = z.sort(dim=-1, descending=True).values
    count = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    total = ordered.cumsum(-1) - 1
    support = (count * ordered > total).sum(-1, keepdim=True)
    threshold = total.gather(-1, support - 1) / support.to(z.dtype)
    return torch.clamp(z - threshold, min=0)


class Glu(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.fc, self.norm = nn.Linear(i, 2 * o, bias=False), nn.BatchNorm1d(2 * o)

    def forward(self, x):
        return F.glu(self.norm(self.fc(x)))


class SparseSteps(nn.Module):
    def __init__(self, columns=64, width=64, steps=3, classes=8):
        super().__init__()
        self.norm = nn.BatchNorm1d(columns)
        self.start = Glu(columns, 2 * width)
        self.read = nn.ModuleList(
            nn.Sequential(Glu(columns, 2 * width), Glu(2 * width, 2 * width)) for _ in range(steps)
        )
        self.choose = nn.ModuleList(
            nn.Sequential(nn.Linear(width, columns), nn.BatchNorm1d(columns)) for _ in range(steps)
        )
        self.head, self.width = nn.Linear(width, classes), width

    def forward(self, table):
        x = self.norm(table)
        prior, entropy, decided = torch.ones_like(x), 0.0, 0.0
        guide = self.start(x)[:, self.width :]
        for choose, read in zip(self.choose, self.read, strict=True):
            mask = sparsemax(choose(guide) * prior)
            prior = prior * (1.3 - mask)
            entropy = entropy - (mask * torch.log(mask + 1e-12)).sum(-1).mean() / len(self.read)
            out, guide = read(mask * x).split(self.width, dim=-1)
            decided = decided + F.relu(out)
        return self.head(decided), entropy


def make_model():
    return SparseSteps()


def make_batch():
    return {"table": torch.randn(512, 64), "label": torch.randint(0, 8, (512,))}


def loss_fn(output, batch):
    logits, entropy = output
    return F.cross_entropy(logits, batch["label"]) + 1e-3 * entropy
