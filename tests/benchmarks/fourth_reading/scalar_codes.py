"""An image tokeniser with finite scalar quantisation. Planted: code numbers up to 15360 come out of a product in 16
bits, and are looked up."""

import torch
from torch import nn


class ScalarCodes(nn.Module):
    def __init__(self, levels=(8, 8, 8, 6, 5), width=64):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.SiLU(), nn.Conv2d(width, len(levels), 1))
        self.decoder = nn.Sequential(nn.Conv2d(len(levels), width, 1), nn.SiLU(), nn.ConvTranspose2d(width, 3, 4, 4))
        counts = torch.tensor(levels)
        self.register_buffer("levels", counts.float())
        self.register_buffer(
            "basis", torch.cumprod(torch.cat([torch.ones(1, dtype=torch.long), counts[:-1]]), 0).float()
        )
        self.prior = nn.Embedding(int(counts.prod()), 16)

    def quantise(self, z):
        bounded = torch.sigmoid(z) * (self.levels - 1).view(1, -1, 1, 1).to(z.dtype)
        return bounded + (bounded.round() - bounded).detach()

    def forward(self, image):
        codes = self.quantise(self.encoder(image))
        digits = codes.detach().permute(0, 2, 3, 1)
        number = torch.matmul(digits, self.basis)  # planted: G211
        token = self.prior(number.long())
        return self.decoder(codes), token


def make_model():
    return ScalarCodes()


def make_batch():
    return {"image": torch.rand(8, 3, 64, 64)}


def loss_fn(output, batch):
    made, token = output
    return nn.functional.mse_loss(made, batch["image"]) + 1e-4 * token.square().mean()
