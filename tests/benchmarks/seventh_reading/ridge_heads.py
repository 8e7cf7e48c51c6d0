"""Few shots by a closed-form ridge head on features (R2-D2): the kernel form, with a learnt penalty. Careful."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def conv_block(inp, out):
    return nn.Sequential(nn.Conv2d(inp, out, 3, padding=1), nn.BatchNorm2d(out), nn.LeakyReLU(0.1), nn.MaxPool2d(2))


class RidgeShots(nn.Module):
    def __init__(self, width=64, ways=8):
        super().__init__()
        self.ways = ways
        self.body = nn.Sequential(conv_block(3, width), conv_block(width, width), conv_block(width, width))
        self.log_penalty = nn.Parameter(torch.tensor(0.0))
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, support, labels, query):
        s, q = self.body(support).flatten(1).float(), self.body(query).flatten(1).float()
        onehot = F.one_hot(labels, self.ways).float()
        with torch.autocast("cuda", enabled=False):
            gram = s @ s.T
            eye = torch.eye(gram.shape[0], device=gram.device)
            weight = s.T @ torch.linalg.solve(gram + (self.log_penalty.exp() + 1e-2) * eye, onehot)
            return self.scale * (q @ weight)


def make_model():
    return RidgeShots()


def make_batch():
    labels = torch.arange(40) % 8
    return (torch.randn(40, 3, 32, 32), labels, torch.randn(64, 3, 32, 32)), torch.arange(64) % 8


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
