"""PixelCNN++ head: discretised mixture of logistics. Planted: log of zero: difference of sigmoids."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class GatedBlock(nn.Module):
    def __init__(self, ch):
        super().__init__()
        self.a = nn.Conv2d(ch, 2 * ch, 3, padding=1)
        self.b = nn.Conv2d(ch, 2 * ch, 3, padding=1)

    def forward(self, x):
        h = F.elu(self.a(F.elu(x)))
        u, v = self.b(h[:, : x.shape[1]] + 0 * x).chunk(2, 1)
        return x + u * torch.sigmoid(v)


class PixelNet(nn.Module):
    def __init__(self, ch=64, n_mix=5, depth=3):
        super().__init__()
        self.n_mix = n_mix
        self.stem = nn.Conv2d(3, ch, 5, padding=2)
        self.blocks = nn.ModuleList(GatedBlock(ch) for _ in range(depth))
        self.head = nn.Conv2d(ch, 3 * n_mix * 3, 1)

    def forward(self, x):
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.head(F.elu(h))


def mix_logistic(params, x, n_mix=5):
    b, _, height, width = x.shape
    params = params.view(b, 3, 3 * n_mix, height, width)
    logit, mu, log_s = params.split(n_mix, dim=2)
    log_s = log_s.clamp(min=-7.0)
    centred = x.unsqueeze(2) - mu
    inv_s = torch.exp(-log_s)
    plus = torch.sigmoid(inv_s * (centred + 1.0 / 255))
    minus = torch.sigmoid(inv_s * (centred - 1.0 / 255))
    log_prob = torch.log(plus - minus)  # planted: G204
    return -torch.logsumexp(F.log_softmax(logit, dim=2) + log_prob, dim=2).mean()


def make_model():
    return PixelNet()


def make_batch():
    x = torch.rand(8, 3, 32, 32) * 2 - 1
    return x, x


def loss_fn(output, batch):
    return mix_logistic(output, batch[1])
