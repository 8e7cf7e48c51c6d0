"""A one-stage detector with a GIoU loss in pixels. Planted: the areas are products of pixel widths in the 16 bits of
the convolutions (640 x 640 is 409600), beyond the largest number of FP16."""

import torch
import torch.nn.functional as F
from torch import nn

CLASSES, SIZE = 80, 640


def conv(inner, outer, stride=1):
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outer), nn.SiLU(inplace=True)
    )


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            conv(3, 32, 2), conv(32, 64, 2), conv(64, 128, 2), conv(128, 256, 2), conv(256, 256, 2)
        )
        self.classes = nn.Conv2d(256, CLASSES, 1)
        self.boxes = nn.Conv2d(256, 8, 1)

    def forward(self, image):
        x = self.body(image)
        scores, boxes = self.classes(x), self.boxes(x)[:, :4].flatten(2).transpose(1, 2).sigmoid() * SIZE
        low, high = torch.minimum(boxes[..., :2], boxes[..., 2:]), torch.maximum(boxes[..., :2], boxes[..., 2:])
        return {"scores": scores.flatten(2).transpose(1, 2), "boxes": torch.cat([low, high], -1)}


def area(boxes):
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])  # planted: G201|G214


def giou(a, b):
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    outer = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    overlap, hull = inner.prod(-1), outer.prod(-1)
    union = area(a) + area(b) - overlap
    return overlap / (union + 1e-7) - (hull - union) / (hull + 1e-7)


def make_model():
    return Detector()


def make_batch():
    corners = torch.rand(16, 400, 2) * 400
    boxes = torch.cat([corners, corners + 16 + torch.rand(16, 400, 2) * 200], -1)
    return torch.rand(16, 3, SIZE, SIZE), (boxes, torch.randint(0, CLASSES, (16, 400)))


def loss_fn(output, batch):
    boxes, labels = batch[1]
    target = F.one_hot(labels, CLASSES).to(output["scores"].dtype)
    p = output["scores"].sigmoid()
    cross = F.binary_cross_entropy_with_logits(output["scores"], target, reduction="none")
    focal = (cross * (1 - (p * target + (1 - p) * (1 - target))) ** 2).mean()
    return focal + (1 - giou(output["boxes"], boxes)).mean()
