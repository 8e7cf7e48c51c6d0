"""Style transfer with adaptive instance norm on raw 0..255 images. Planted: a variance by
E[x^2] - E[x]^2."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def stats(feat, eps=1e-5):
    mean = feat.mean(dim=(2, 3), keepdim=True)
    sq = (feat**2).mean(dim=(2, 3), keepdim=True)
    std = (sq - mean**2 + eps).sqrt()  # planted: G218
    return mean, std


def adain(content, style):
    cm, cs = stats(content)
    sm, ss = stats(style)
    return (content - cm) / cs * ss + sm


class StyleNet(nn.Module):
    def __init__(self, ch=64):
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(3, ch, 3, 1, 1), nn.ReLU(), nn.Conv2d(ch, ch, 3, 2, 1), nn.ReLU())
        self.dec = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(ch, ch, 3, 1, 1), nn.ReLU(), nn.Conv2d(ch, 3, 3, 1, 1)
        )

    def forward(self, content, style):
        mixed = adain(content, style)
        return self.dec(self.enc(mixed)), mixed


def make_model():
    return StyleNet()


def make_batch():
    content = torch.randint(0, 256, (4, 3, 128, 128)).float()
    style = torch.randint(0, 256, (4, 3, 128, 128)).float()
    return (content, style), content


def loss_fn(output, batch):
    rec, mixed = output
    return F.l1_loss(rec, mixed.detach())
