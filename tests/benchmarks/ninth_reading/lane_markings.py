"""Lane markings on wide road pictures, 128 by 1,280: coordinates go in as two channels, so that the head can say the
column where a lane crosses each row. All in BF16."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class WithPlaces(nn.Module):
    """A convolution that also sees column and row of each pixel, in [-1, 1]."""

    def __init__(self, cin, cout, size):
        super().__init__()
        self.conv = nn.Conv2d(cin + 2, cout, size, padding=size // 2)

    def forward(self, x):
        b, _, rows, columns = x.shape
        across = torch.linspace(-1, 1, columns, device=x.device, dtype=x.dtype)  # planted: G211
        along = torch.linspace(-1, 1, rows, device=x.device, dtype=x.dtype)
        places = torch.stack((across.expand(rows, columns), along[:, None].expand(rows, columns)))
        return self.conv(torch.cat((x, places.expand(b, -1, -1, -1)), 1))


class Lanes(nn.Module):
    def __init__(self, lanes=4, width=32):
        super().__init__()
        self.stem = nn.Sequential(WithPlaces(3, width, 5), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        )  # fmt: skip
        self.where = nn.Conv2d(width, lanes, 1)

    def forward(self, x):
        heat = self.where(self.body(self.stem(x))).float().softmax(-1)
        column = torch.arange(x.shape[-1], device=x.device, dtype=torch.float32)
        return (heat * column).sum(-1)


def make_model():
    return Lanes().bfloat16()


def make_batch():
    return torch.rand(2, 3, 128, 1280).bfloat16(), 1280 * torch.rand(2, 4, 128)


def loss_fn(output, batch):
    return F.smooth_l1_loss(output / 1280.0, batch[1] / 1280.0)
