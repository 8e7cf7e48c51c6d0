"""Protein sequences from backbones: frames and dihedral angles of the atoms, messages over nearest neighbours,
masked losses. Careful: arc cosines are clamped and take no gradient, missing residues are masked by weights,
and counts are floored."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def unit(x, eps=1e-8):
    return x / (x.norm(dim=-1, keepdim=True) + eps)


def dihedrals(backbone, eps=1e-7):
    """(batch, residues, 3 atoms, 3) -> sines and cosines of the three angles of each residue."""
    chain = backbone.flatten(1, 2)
    steps = unit(chain[:, 1:] - chain[:, :-1])
    n2 = unit(torch.linalg.cross(steps[:, :-2], steps[:, 1:-1]))
    n1 = unit(torch.linalg.cross(steps[:, 1:-1], steps[:, 2:]))
    cosine = (n2 * n1).sum(-1).clamp(-1 + eps, 1 - eps)
    angle = torch.sign((steps[:, :-2] * n1).sum(-1)) * torch.acos(cosine)
    angle = F.pad(angle, (1, 2)).unflatten(1, (-1, 3))
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def radial(d, count=16, low=2.0, high=22.0):
    centres = torch.linspace(low, high, count, device=d.device)
    width = (high - low) / count
    return torch.exp(-(((d[..., None] - centres) / width) ** 2))


class Message(nn.Module):
    def __init__(self, dim, scale=30.0):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(3 * dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.norm, self.scale = nn.LayerNorm(dim), scale

    def forward(self, h, edges, index, weight):
        b = torch.arange(h.shape[0], device=h.device)[:, None, None]
        there = h[b, index]
        here = h[:, :, None].expand_as(there)
        message = self.mlp(torch.cat([here, there, edges], -1)) * weight[..., None]
        return self.norm(h + message.sum(2) / self.scale)


class InverseFolder(nn.Module):
    def __init__(self, dim=96, depth=3, neighbours=16):
        super().__init__()
        self.node, self.edge = nn.Linear(6, dim), nn.Linear(16, dim)
        self.layers = nn.ModuleList(Message(dim) for _ in range(depth))
        self.head, self.neighbours = nn.Linear(dim, 20), neighbours

    def forward(self, backbone, mask):
        alpha = backbone[:, :, 1]
        both = mask[:, :, None] * mask[:, None]
        delta = alpha[:, :, None] - alpha[:, None]
        d = both * torch.sqrt(delta.square().sum(-1) + 1e-6)
        far = d + (1 - both) * d.amax((1, 2), keepdim=True)
        nearest, index = far.topk(self.neighbours, dim=-1, largest=False)
        weight = both.gather(2, index)
        h = self.node(dihedrals(backbone))
        edges = self.edge(radial(nearest))
        for layer in self.layers:
            h = layer(h, edges, index, weight)
        return self.head(h).log_softmax(-1)


def make_model():
    return InverseFolder()


def make_batch():
    backbone = (torch.randn(4, 80, 3, 3) * 1.5).cumsum(1)
    mask = (torch.arange(80) < torch.tensor([80, 64, 71, 50])[:, None]).float()
    return (backbone * mask[..., None, None], mask), torch.randint(0, 20, (4, 80))


def loss_fn(output, batch):
    mask = batch[0][1]
    nll = -output.gather(-1, batch[1][..., None]).squeeze(-1)
    return (nll * mask).sum() / mask.sum().clamp(min=1.0)
