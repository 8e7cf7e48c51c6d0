"""DGCNN for point clouds: each layer finds the nearest neighbours anew and takes the maximum over their edges; 32
clouds of 1024 points."""

import torch
import torch.nn.functional as F
from torch import nn

BATCH, POINTS, NEAREST, CLASSES, WIDTHS, FEATURES = 32, 1024, 20, 40, (64, 64, 128, 256), 1024


def nearest(x):
    products = torch.matmul(x.transpose(2, 1), x)
    squares = torch.sum(x**2, dim=1, keepdim=True)
    return (2 * products - squares - squares.transpose(2, 1)).topk(NEAREST, dim=-1).indices


def edges(x):
    b, c, n = x.shape
    index = (nearest(x) + torch.arange(b, device=x.device).view(-1, 1, 1) * n).view(-1)
    rows = x.transpose(2, 1).contiguous()
    near = rows.view(b * n, c)[index].view(b, n, NEAREST, c)
    rows = rows.view(b, n, 1, c).expand(-1, -1, NEAREST, -1)
    return torch.cat([near - rows, rows], dim=3).permute(0, 3, 1, 2).contiguous()


class EdgeConv(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.conv = nn.Conv2d(2 * inner, outer, 1, bias=False)
        self.norm = nn.BatchNorm2d(outer)

    def forward(self, x):
        return F.leaky_relu(self.norm(self.conv(edges(x))), 0.2).max(dim=-1).values


class DGCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(EdgeConv(a, b) for a, b in zip((3, *WIDTHS), WIDTHS, strict=False))
        self.gather = nn.Sequential(
            nn.Conv1d(sum(WIDTHS), FEATURES, 1, bias=False), nn.BatchNorm1d(FEATURES), nn.LeakyReLU(0.2)
        )
        self.head = nn.Sequential(
            nn.Linear(2 * FEATURES, 512, bias=False), nn.BatchNorm1d(512), nn.LeakyReLU(0.2), nn.Dropout(0.5),
            nn.Linear(512, 256), nn.BatchNorm1d(256), nn.LeakyReLU(0.2), nn.Dropout(0.5), nn.Linear(256, CLASSES),
        )  # fmt: skip

    def forward(self, x):
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        x = self.gather(torch.cat(found, dim=1))
        pooled = [F.adaptive_max_pool1d(x, 1).flatten(1), F.adaptive_avg_pool1d(x, 1).flatten(1)]
        return self.head(torch.cat(pooled, dim=1))


def make_model():
    return DGCNN()


def make_batch():
    return torch.rand(BATCH, 3, POINTS) * 2 - 1, torch.randint(0, CLASSES, (BATCH,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1], label_smoothing=0.2)
