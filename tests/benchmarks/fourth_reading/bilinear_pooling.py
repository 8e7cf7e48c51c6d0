"""Fine-grained classes by bilinear pooling of two streams. Planted: the signed root of features that ReLU has made
zero takes an eps of 1e-10, which FP16 does not have."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def stream(width):
    layers, channels = [], 3
    for out in (width // 2, width, width, width, width):
        layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        channels = out
    return nn.Sequential(*layers)


class BilinearNet(nn.Module):
    def __init__(self, width=64, classes=200):
        super().__init__()
        self.a, self.b = stream(width), stream(width)
        self.fc = nn.Linear(width * width, classes)

    def forward(self, image):
        a, b = self.a(image), self.b(image)
        n, c, h, w = a.shape
        pooled = torch.bmm(a.view(n, c, h * w), b.view(n, c, h * w).transpose(1, 2)) / (h * w)
        pooled = pooled.view(n, c * c)
        pooled = torch.sign(pooled) * torch.sqrt(torch.abs(pooled) + 1e-10)  # planted: G206
        return self.fc(F.normalize(pooled))


def make_model():
    return BilinearNet()


def make_batch():
    return torch.randn(16, 3, 64, 64), torch.randint(0, 200, (16,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
