"""Additive angular margin head on a small face network (as in many ArcFace forks). Planted: acos at +-1: infinite
gradient or NaN."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def conv_bn(i, o, s):
    return nn.Sequential(nn.Conv2d(i, o, 3, s, 1, bias=False), nn.BatchNorm2d(o), nn.PReLU(o))


class AngularMargin(nn.Module):
    s, m = 64.0, 0.5

    def __init__(self, feat, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, feat))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x, label):
        cos = F.linear(F.normalize(x), F.normalize(self.weight))
        theta = torch.acos(cos)  # planted: G213
        target = torch.cos(theta + self.m)
        hot = F.one_hot(label, cos.shape[1]).to(cos.dtype)
        return self.s * (hot * target + (1 - hot) * cos)


class FaceNet(nn.Module):
    def __init__(self, classes=1000, feat=256):
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 64, 2), conv_bn(64, 128, 2), conv_bn(128, 256, 2), nn.AdaptiveAvgPool2d(1))
        self.neck = nn.Sequential(nn.Flatten(), nn.Linear(256, feat), nn.BatchNorm1d(feat))
        self.margin = AngularMargin(feat, classes)

    def forward(self, image, label):
        return self.margin(self.neck(self.body(image)), label)


def make_model():
    return FaceNet()


def make_batch():
    y = torch.randint(0, 1000, (16,))
    return (torch.randn(16, 3, 112, 112), y), y


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
