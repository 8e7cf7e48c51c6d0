"""Fast style transfer with the features of a frozen network. Planted: Gram matrices of 128 x 128 places, divided after
the product, which FP16 holds only while features stay small."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def conv(i, o, stride=1):
    return nn.Sequential(
        nn.ReflectionPad2d(1), nn.Conv2d(i, o, 3, stride), nn.InstanceNorm2d(o, affine=True), nn.ReLU()
    )


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())
        self.two = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(64, 128, 3, padding=1), nn.ReLU())
        for p in self.parameters():
            p.requires_grad_(False)

    def forward(self, x):
        a = self.one(x)
        return a, self.two(a)


def gram(f):
    b, c, h, w = f.shape
    f = f.view(b, c, h * w)
    return torch.bmm(f, f.transpose(1, 2)) / (c * h * w)  # planted: G201|G207|G214


class Stylist(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(conv(3, 32), conv(32, 64, 2), conv(64, 64), nn.Upsample(scale_factor=2), conv(64, 32))
        self.out = nn.Conv2d(32, 3, 3, padding=1)
        self.features = Features()

    def forward(self, content, style):
        made = torch.sigmoid(self.out(self.net(content))) * 255
        f, want, of_style = self.features(made), self.features(content), self.features(style)
        loss = F.mse_loss(f[1], want[1])
        for a, b in zip(f, of_style, strict=True):
            loss = loss + 1e5 * F.mse_loss(gram(a), gram(b))
        return loss


def make_model():
    return Stylist()


def make_batch():
    return {"content": torch.rand(4, 3, 128, 128) * 255, "style": torch.rand(4, 3, 128, 128) * 255}


def loss_fn(out, batch):
    return out
