"""Set transformer for jets: Minkowski masses under a root, odd widths in the large layers. Planted: 1021: not a
multiple of 8."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class JetNet(nn.Module):
    def __init__(self, width=1021, classes=10):
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.mid = nn.Linear(width, width)
        self.out = nn.Linear(2 * width, classes)

    def forward(self, p4, feats):
        h = F.gelu(self.mid(F.gelu(self.embed(feats))))  # planted: G101|G102
        energy, momentum = p4[..., 0], p4[..., 1:].norm(dim=-1)
        mass = (energy.square() - momentum.square()).clamp(min=1e-6).sqrt()
        w = torch.softmax(mass, dim=-1).unsqueeze(-1)
        return self.out(torch.cat([(w * h).sum(1), h.amax(1)], -1))


def make_model():
    return JetNet()


def make_batch():
    p = torch.randn(64, 32, 3)
    e = (p.square().sum(-1, keepdim=True) + 1).sqrt()
    return (torch.cat([e, p], -1), torch.randn(64, 32, 8)), torch.randint(0, 10, (64,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
