"""A U-Net for volumes as in nnU-Net: instance norms, leaky ReLUs, transposed convolutions, soft Dice with
cross-entropy at three resolutions; 2 scans of four channels, 96 x 96 x 96."""

import torch
import torch.nn.functional as F
from torch import nn

BATCH, CHANNELS, SIDE, CLASSES, WIDTHS, HEADS = 2, 4, 96, 4, (32, 64, 128, 256, 320), 3


def pair(inner, outer, stride=1):
    layers = []
    for a, s in ((inner, stride), (outer, 1)):
        layers += [nn.Conv3d(a, outer, 3, s, 1), nn.InstanceNorm3d(outer, affine=True), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers)


class Up(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.up, self.convs = nn.ConvTranspose3d(inner, outer, 2, 2), pair(2 * outer, outer)

    def forward(self, x, skip):
        return self.convs(torch.cat([self.up(x), skip], dim=1))


class UNet3d(nn.Module):
    def __init__(self):
        super().__init__()
        inner = (CHANNELS, *WIDTHS)
        self.down = nn.ModuleList(pair(inner[i], w, 2 if i else 1) for i, w in enumerate(WIDTHS))
        self.up = nn.ModuleList(Up(WIDTHS[i], WIDTHS[i - 1]) for i in range(len(WIDTHS) - 1, 0, -1))
        self.heads = nn.ModuleList(nn.Conv3d(w, CLASSES, 1) for w in WIDTHS[:HEADS])

    def forward(self, x):
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        found = []
        for number, stage in enumerate(self.up):
            x = stage(x, skips[-2 - number])
            found.append(x)
        return [head(x) for head, x in zip(self.heads, reversed(found), strict=False)]


def make_model():
    return UNet3d()


def make_batch():
    return torch.randn(BATCH, CHANNELS, SIDE, SIDE, SIDE), torch.randint(0, CLASSES, (BATCH, SIDE, SIDE, SIDE))


def dice(logits, labels):
    shares = logits.softmax(dim=1)
    ones = F.one_hot(labels, CLASSES).movedim(-1, 1)
    both = (shares * ones).sum(dim=(0, 2, 3, 4))
    return 1 - ((2 * both + 1e-5) / (shares.sum(dim=(0, 2, 3, 4)) + ones.sum(dim=(0, 2, 3, 4)) + 1e-5))[1:].mean()


def loss_fn(output, batch):
    loss = 0.0
    for level, logits in enumerate(output):
        labels = batch[1][:, :: 2**level, :: 2**level, :: 2**level]
        loss = loss + 0.5**level * (F.cross_entropy(logits, labels) + dice(logits.float(), labels))
    return loss
