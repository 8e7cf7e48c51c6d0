"""FCOS-like detector: focal loss by logits, GIoU with clamps, centreness."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Head(nn.Module):
    def __init__(self, ch=64, classes=16):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, ch, 3, 2, 1),
            nn.GroupNorm(8, ch),
            nn.ReLU(),
            nn.Conv2d(ch, ch, 3, 2, 1),
            nn.GroupNorm(8, ch),
            nn.ReLU(),
        )
        self.cls, self.reg, self.ctr = (
            nn.Conv2d(ch, classes, 3, 1, 1),
            nn.Conv2d(ch, 4, 3, 1, 1),
            nn.Conv2d(ch, 1, 3, 1, 1),
        )

    def forward(self, x):
        f = self.backbone(x)
        return self.cls(f), F.softplus(self.reg(f)), self.ctr(f)


def focal(logits, target, alpha=0.25, gamma=2.0):
    ce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p_t = torch.exp(-ce)
    w = alpha * target + (1 - alpha) * (1 - target)
    return (w * (1 - p_t) ** gamma * ce).sum() / target.sum().clamp(min=1)


def giou(p, t):
    pa = (p[:, 0] + p[:, 2]) * (p[:, 1] + p[:, 3])
    ta = (t[:, 0] + t[:, 2]) * (t[:, 1] + t[:, 3])
    w = torch.min(p[:, 0], t[:, 0]) + torch.min(p[:, 2], t[:, 2])
    h = torch.min(p[:, 1], t[:, 1]) + torch.min(p[:, 3], t[:, 3])
    gw = torch.max(p[:, 0], t[:, 0]) + torch.max(p[:, 2], t[:, 2])
    gh = torch.max(p[:, 1], t[:, 1]) + torch.max(p[:, 3], t[:, 3])
    inter = w * h
    union = pa + ta - inter
    hull = gw * gh
    iou = inter / union.clamp(min=1e-4)
    return (1 - iou + (hull - union) / hull.clamp(min=1e-4)).mean()


def make_model():
    return Head()


def make_batch():
    cls = torch.randint(0, 2, (4, 16, 16, 16)).float()
    return torch.randn(4, 3, 64, 64), (cls, torch.rand(4, 4, 16, 16) * 8 + 0.1, torch.rand(4, 1, 16, 16))


def loss_fn(output, batch):
    cls, reg, ctr = output
    tc, tr, tq = batch[1]
    return focal(cls, tc) + giou(reg.float(), tr) + F.binary_cross_entropy_with_logits(ctr, tq)
