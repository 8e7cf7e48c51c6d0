"""A network that steps a temperature field, trained on the residual of the heat equation. Planted: the stencil is a
convolution in 16 bits, and its product with a diffusivity of 1e-8 is zero in FP16."""

import torch
import torch.nn.functional as F
from torch import nn


class Stepper(nn.Module):
    def __init__(self, width=64, diffusivity=1e-8):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, padding_mode="circular"), nn.Tanh(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="circular"), nn.Tanh(),
            nn.Conv2d(width, 1, 3, padding=1, padding_mode="circular"),
        )  # fmt: skip
        self.diffusivity = diffusivity
        self.register_buffer("stencil", torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None])

    def forward(self, field):
        after = torch.tanh(self.net(field))
        curvature = F.conv2d(F.pad(after, (1, 1, 1, 1), mode="circular"), self.stencil)
        spread = self.diffusivity * curvature  # planted: G202
        return after, spread


def make_model():
    return Stepper()


def make_batch():
    return {"field": torch.rand(8, 1, 64, 64)}


def loss_fn(output, batch):
    after, spread = output
    change = (after.float() - batch["field"]) * 1e-8
    return ((change - spread.float()) / 1e-8).square().mean()
