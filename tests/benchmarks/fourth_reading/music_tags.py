"""Tags of music from the raw wave. Planted: the energy of each band is one einsum over 72000 normalised samples,
whose sum in FP16 is infinite."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Bands(nn.Module):
    def __init__(self, bands=64, size=129):
        super().__init__()
        self.filters = nn.Conv1d(1, bands, size, padding=size // 2, bias=False)
        self.norm = nn.InstanceNorm1d(bands)

    def forward(self, wave):
        return self.norm(self.filters(wave.unsqueeze(1)))


class Tags(nn.Module):
    def __init__(self, bands=64, tags=50):
        super().__init__()
        self.bands = Bands(bands)
        self.mix = nn.Conv1d(bands, bands, 1)
        self.head = nn.Sequential(nn.Linear(2 * bands, 256), nn.ReLU(), nn.Linear(256, tags))

    def forward(self, wave):
        x = self.bands(wave)
        y = self.mix(x)
        energy = torch.einsum("bct,bct->bc", x, x)  # planted: G207|G201|G214
        loud = torch.log1p(energy.float() / x.shape[-1])
        return self.head(torch.cat([loud, y.abs().amax(-1)], dim=-1))


def make_model():
    return Tags()


def make_batch():
    return torch.randn(4, 72000), torch.randint(0, 2, (4, 50)).float()


def loss_fn(output, batch):
    return F.binary_cross_entropy_with_logits(output, batch[1])
