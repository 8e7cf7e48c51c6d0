"""Frames between frames: a small flow network and a pseudo-Huber loss by hand. Careful: square ends in pow, which
autocast runs in FP32 (it was written as a planted line, in the belief that it does not)."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def conv(cin, cout, stride=1):
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1), nn.PReLU(cout))


class Warp(nn.Module):
    def forward(self, image, flow):
        b, _, h, w = image.shape
        y = torch.linspace(-1, 1, h, device=image.device)
        x = torch.linspace(-1, 1, w, device=image.device)
        gy, gx = torch.meshgrid(y, x, indexing="ij")
        grid = torch.stack([gx, gy], -1)[None].expand(b, -1, -1, -1)
        shift = torch.stack([flow[:, 0] * 2 / (w - 1), flow[:, 1] * 2 / (h - 1)], -1)
        return F.grid_sample(image, grid + shift.float(), align_corners=True, padding_mode="border")


class Between(nn.Module):
    def __init__(self, ch=32):
        super().__init__()
        self.down = nn.Sequential(conv(6, ch), conv(ch, 2 * ch, 2), conv(2 * ch, 2 * ch))
        self.up = nn.ConvTranspose2d(2 * ch, ch, 4, 2, 1)
        self.flow = nn.Conv2d(ch, 5, 3, padding=1)
        self.refine = nn.Sequential(conv(9, ch), nn.Conv2d(ch, 3, 3, padding=1))
        self.warp = Warp()

    def forward(self, first, last):
        out = self.flow(F.relu(self.up(self.down(torch.cat([first, last], 1)))))
        a, b = self.warp(first, out[:, :2]), self.warp(last, out[:, 2:4])
        mask = torch.sigmoid(out[:, 4:])
        made = mask * a + (1 - mask) * b
        return self.refine(torch.cat([made, first, last], 1))


def pseudo_huber(made, true, delta=1e-3):
    scaled = (made - true.to(made.dtype)) / delta
    return delta * (torch.sqrt(1 + scaled.square()) - 1).mean()


def make_model():
    return Between()


def make_batch():
    return (torch.rand(4, 3, 96, 96), torch.rand(4, 3, 96, 96)), torch.rand(4, 3, 96, 96)


def loss_fn(output, batch):
    return pseudo_huber(output, batch[1])
