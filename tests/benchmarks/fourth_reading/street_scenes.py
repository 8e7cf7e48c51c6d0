"""Segmentation of streets with the Lovasz extension of the Jaccard loss. Careful."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Streets(nn.Module):
    def __init__(self, width=32, classes=19):
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.wide = nn.ModuleList(nn.Conv2d(2 * width, width, 3, padding=r, dilation=r, bias=False) for r in (1, 3, 6))
        self.norm = nn.BatchNorm2d(3 * width)
        self.head = nn.Conv2d(3 * width, classes, 1)

    def forward(self, image):
        x = self.down(image)
        x = F.relu(self.norm(torch.cat([branch(x) for branch in self.wide], 1)))
        return F.interpolate(self.head(x), scale_factor=4, mode="bilinear", align_corners=False)


def lovasz_weights(sorted_truth):
    total = sorted_truth.sum(1, keepdim=True)
    intersection = total - sorted_truth.cumsum(1)
    union = total + (1 - sorted_truth).cumsum(1)
    jaccard = 1 - intersection / union
    return torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], dim=1)


def lovasz(logits, label):
    share = F.softmax(logits, dim=1).transpose(0, 1).flatten(1)
    truth = F.one_hot(label.flatten(), logits.shape[1]).T.to(share.dtype)
    error, order = torch.sort((truth - share).abs(), dim=1, descending=True)
    weights = lovasz_weights(torch.gather(truth, 1, order))
    present = (truth.sum(1) > 0).to(share.dtype)
    return ((error * weights).sum(1) * present).sum() / present.sum().clamp(min=1)


def make_model():
    return Streets()


def make_batch():
    return {"image": torch.randn(4, 3, 64, 128), "label": torch.randint(0, 19, (4, 64, 128))}


def loss_fn(output, batch):
    return F.cross_entropy(output, batch["label"]) + lovasz(output, batch["label"])
