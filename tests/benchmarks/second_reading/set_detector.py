"""A detector with queries and normalised boxes, matched in order. Planted: the union of two boxes in 16 bits is kept
off zero by 1e-9, which FP16 does not have, and small boxes have no area in FP16 either."""

import torch
import torch.nn.functional as F
from torch import nn


def corners(boxes):
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


class Queries(nn.Module):
    def __init__(self, width=256, queries=96, classes=91):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 4, 3), nn.ReLU(), nn.Conv2d(64, 128, 3, 2, 1), nn.ReLU(), nn.Conv2d(128, width, 3, 2, 1)
        )
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.places = nn.Parameter(0.02 * torch.randn(256, width))
        layer = nn.TransformerDecoderLayer(width, 8, 4 * width, 0.0, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        self.scores = nn.Linear(width, classes + 1)
        self.boxes = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))

    def forward(self, image):
        memory = self.stem(image).flatten(2).transpose(1, 2) + self.places
        h = self.decoder(self.queries.expand(len(image), -1, -1), memory)
        return self.scores(h), torch.sigmoid(self.boxes(h))


def make_model():
    return Queries()


def make_batch():
    size = 0.02 + 0.3 * torch.rand(16, 96, 2)
    boxes = torch.cat([0.2 + 0.6 * torch.rand(16, 96, 2), size], -1)
    return torch.rand(16, 3, 256, 256), (torch.randint(0, 92, (16, 96)), boxes)


def overlap(a, b):
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    inner = width * height
    first, second = ((x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (a, b))
    return inner / (first + second - inner + 1e-9)  # planted: G205


def loss_fn(output, batch):
    scores, boxes = output
    labels, goal = batch[1]
    goal = goal.to(boxes.dtype)
    near = F.l1_loss(boxes, goal) + (1 - overlap(corners(boxes), corners(goal))).mean()
    return F.cross_entropy(scores.flatten(0, 1), labels.flatten()) + 5 * near
