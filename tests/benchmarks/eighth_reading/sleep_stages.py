"""Sleep stages of raw EEG in microvolts by band powers and a transformer over epochs, the whole model in FP16.
Planted: the square of an artefact of some hundred microvolts is past FP16's range."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class BandPowers(nn.Module):
    """Learnt filters, and the logarithm of the power that each lets pass."""

    def __init__(self, channels, filters=24, width=65):
        super().__init__()
        kernel = torch.randn(filters, channels, width)
        self.kernel = nn.Parameter(kernel / kernel.flatten(1).norm(dim=1)[:, None, None])

    def forward(self, x):
        power = x.pow(2).mean(dim=-1)  # planted: G214|G201
        filtered = F.conv1d(x / 100.0, self.kernel, padding="same")
        band = filtered.float().square().mean(dim=-1).clamp(min=1e-6).log()
        return torch.cat([band, torch.log1p(power.float())], dim=-1)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = torch.softmax((q * self.scale) @ k.transpose(-1, -2), dim=-1, dtype=torch.float32).to(v.dtype)
        return x + self.out((weights @ v).transpose(1, 2).reshape(b, n, -1))


class Stager(nn.Module):
    def __init__(self, channels=4, dim=128, depth=2):
        super().__init__()
        self.bands = BandPowers(channels)
        self.embed = nn.Linear(24 + channels, dim)
        self.layers = nn.Sequential(*[Attention(dim, 4) for _ in range(depth)])
        self.head = nn.Linear(dim, 5)

    def forward(self, epochs):
        b, n, c, t = epochs.shape
        features = self.bands(epochs.reshape(b * n, c, t).to(self.head.weight.dtype))
        x = self.embed(features.to(self.head.weight.dtype)).view(b, n, -1)
        return self.head(self.layers(x))


def make_model():
    return Stager().half()


def make_batch():
    epochs = torch.randn(2, 16, 4, 768) * 30.0
    blink = torch.rand(2, 16, 4, 1) < 0.2
    epochs = epochs + blink * 400.0 * torch.hann_window(768)
    return epochs, torch.randint(0, 5, (2, 16))


def loss_fn(output, batch):
    return F.cross_entropy(output.float().flatten(0, 1), batch[1].flatten())
