"""A separator of sources judged by spectra of several sizes. Planted: the magnitude is the root of real and imaginary
squares, whose gradient is infinite in silence."""

import torch
import torch.nn.functional as F
from torch import nn


class Separator(nn.Module):
    def __init__(self, width=256, taps=16, depth=3):
        super().__init__()
        self.lift = nn.Conv1d(1, width, taps, taps // 2, bias=False)
        self.norm = nn.GroupNorm(1, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, 2 * width, 1),
                nn.PReLU(),
                nn.GroupNorm(1, 2 * width),
                nn.Conv1d(2 * width, 2 * width, 3, padding=2**d, dilation=2**d, groups=2 * width),
                nn.PReLU(),
                nn.GroupNorm(1, 2 * width),
                nn.Conv1d(2 * width, width, 1),
            )
            for d in range(depth)
        )
        self.masks = nn.Conv1d(width, 2 * width, 1)
        self.back = nn.ConvTranspose1d(width, 1, taps, taps // 2, bias=False)

    def forward(self, mixed):
        h = F.relu(self.lift(mixed[:, None]))
        x = self.norm(h)
        for block in self.blocks:
            x = x + block(x)
        masks = torch.sigmoid(self.masks(F.relu(x))).unflatten(1, (2, -1))
        return self.back((masks * h[:, None]).flatten(0, 1)).view(len(mixed), 2, -1)


def make_model():
    return Separator()


def make_batch():
    parts = torch.randn(8, 2, 8192) * 0.1
    parts[:, :, 6000:] = 0
    return parts.sum(1), parts


def magnitude(wave, size):
    window = torch.hann_window(size, device=wave.device)
    spectrum = torch.view_as_real(torch.stft(wave.float(), size, size // 4, window=window, return_complex=True))
    return torch.sqrt(spectrum[..., 0] ** 2 + spectrum[..., 1] ** 2)  # planted: G206


def loss_fn(output, batch):
    seen, goal = output.flatten(0, 1), batch[1].flatten(0, 1)
    total = F.l1_loss(seen, goal)
    for size in (256, 512, 1024):
        total = total + F.l1_loss(magnitude(seen, size), magnitude(goal, size))
    return total
