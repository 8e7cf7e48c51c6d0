"""Face embeddings trained with an additive angular margin (ArcFace), 10575 identities. Planted: the arc cosine is
taken of cosines that reach 1, where its gradient is infinite."""

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inner), nn.Conv2d(inner, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer),
            nn.PReLU(outer), nn.Conv2d(outer, outer, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outer),
        )  # fmt: skip
        self.skip = nn.Sequential(nn.Conv2d(inner, outer, 1, stride=2, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x):
        return self.branch(x) + self.skip(x)


class ArcHead(nn.Module):
    def __init__(self, width, classes, scale=64.0, margin=0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))
        nn.init.xavier_uniform_(self.weight)
        self.scale, self.margin = scale, margin

    def forward(self, embedding, labels):
        cosine = F.linear(F.normalize(embedding), F.normalize(self.weight))
        angle = torch.acos(cosine)  # planted: G213
        target = F.one_hot(labels, cosine.shape[1]).bool()
        return self.scale * torch.where(target, torch.cos(angle + self.margin), cosine)


class FaceNet(nn.Module):
    def __init__(self, classes=10575):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        self.stages = nn.Sequential(Residual(64, 64), Residual(64, 128), Residual(128, 256), Residual(256, 512))
        self.embed = nn.Sequential(nn.Flatten(), nn.Linear(512 * 7 * 7, 512), nn.BatchNorm1d(512))
        self.head = ArcHead(512, classes)

    def forward(self, image, labels):
        return self.head(self.embed(self.stages(self.stem(image))), labels)


def make_model():
    return FaceNet()


def make_batch():
    labels = torch.randint(0, 10575, (64,))
    return {"image": torch.rand(64, 3, 112, 112) * 2 - 1, "labels": labels}


def loss_fn(output, batch):
    return F.cross_entropy(output, batch["labels"])
