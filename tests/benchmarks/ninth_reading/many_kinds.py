"""A detector of 1,200 kinds of things, one answer per cell. Boxes by the complete IoU, kinds by focal loss. The
targets of a cell travel as one row: box (x, y, w, h in cells) and kind."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Detector(nn.Module):
    def __init__(self, kinds=1200, width=64):
        super().__init__()
        layers, cin = [], 3
        for cout in (width // 2, width, 2 * width, 4 * width):
            layers += [nn.Conv2d(cin, cout, 3, 2, 1, bias=False), nn.BatchNorm2d(cout), nn.SiLU()]
            cin = cout
        self.body = nn.Sequential(*layers)
        self.box = nn.Conv2d(cin, 4, 1)
        self.kind = nn.Conv2d(cin, kinds, 1)
        nn.init.constant_(self.kind.bias, -math.log(99.0))

    def forward(self, x):
        h = self.body(x)
        box = self.box(h).flatten(2).transpose(1, 2)
        place = box[..., :2].sigmoid()
        size = F.relu(box[..., 2:])
        return torch.cat((place, size), -1), self.kind(h).flatten(2).transpose(1, 2)


def complete_iou(a, b, eps=1e-6):
    """1 - CIoU of boxes (x, y, w, h)."""
    low_a, high_a = a[..., :2] - a[..., 2:] / 2, a[..., :2] + a[..., 2:] / 2
    low_b, high_b = b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2
    shared = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(-1)
    union = a[..., 2] * a[..., 3] + b[..., 2] * b[..., 3] - shared + eps
    iou = shared / union
    hull = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).square().sum(-1) + eps
    away = (a[..., :2] - b[..., :2]).square().sum(-1) / hull
    shape_a, shape_b = torch.atan(a[..., 2] / a[..., 3]), torch.atan(b[..., 2] / b[..., 3])  # planted: G205
    shape = 4.0 / math.pi**2 * (shape_b - shape_a).square()
    with torch.no_grad():
        trade = shape / (1.0 - iou + shape + eps)
    return 1.0 - iou + away + trade * shape


def focal(logits, target, gamma=2.0, alpha=0.25):
    p = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    miss = p * (1 - target) + (1 - p) * target
    return ((alpha * target + (1 - alpha) * (1 - target)) * miss.square() * ce).sum()


def make_model():
    return Detector()


def make_batch():
    box = 0.5 + torch.rand(2, 256, 4)
    return torch.rand(2, 3, 256, 256), (box, torch.randint(0, 1200, (2, 256)))


def loss_fn(output, batch):
    boxes, logits = output
    true_box, true_kind = batch[1]
    rows = torch.cat((true_box, true_kind[..., None]), -1).to(boxes.dtype)  # planted: G211
    kind = rows[..., 4].long()
    wanted = F.one_hot(kind, logits.shape[-1]).float()
    shape = complete_iou(boxes.float(), rows[..., :4].float()).mean()
    return shape + focal(logits.float(), wanted) / wanted.sum()
