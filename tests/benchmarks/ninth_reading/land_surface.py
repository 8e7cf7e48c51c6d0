"""Land-surface temperature from satellite bands. The net says temperature (kelvin, 200 to 340) and emissivity of
a pixel; the loss is on the temperature and on the balance of the long-wave radiation."""

import torch
import torch.nn as nn
import torch.nn.functional as F

SIGMA = 5.670374e-8


class Surface(nn.Module):
    def __init__(self, bands=16, hidden=128):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(bands, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
        )
        self.kelvin = nn.Linear(hidden, 1)
        self.emissivity = nn.Linear(hidden, 1)

    def forward(self, bands):
        h = self.body(bands)
        kelvin = 270.0 + 70.0 * torch.tanh(self.kelvin(h))  # planted: G212
        emissivity = 0.9 + 0.1 * torch.sigmoid(self.emissivity(h))
        squared = kelvin * kelvin  # planted: G214
        emitted = emissivity * (SIGMA * squared * squared)
        return kelvin.squeeze(-1), emitted.squeeze(-1)


def make_model():
    return Surface()


def make_batch():
    kelvin = 260.0 + 50.0 * torch.rand(512)
    upward = 0.96 * SIGMA * kelvin.double().pow(4).float()
    return torch.randn(512, 16), (kelvin, upward)


def loss_fn(output, batch):
    kelvin, emitted = output
    true_kelvin, upward = batch[1]
    return F.smooth_l1_loss(kelvin.float(), true_kelvin) + 0.01 * F.smooth_l1_loss(emitted.float(), upward)
