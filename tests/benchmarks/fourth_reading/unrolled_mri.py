"""Magnetic resonance images from a part of their frequencies, unrolled steps of data consistency. Careful: what goes
through a transform is FP32."""

import torch
import torch.nn.functional as F
from torch import nn


def to_frequencies(x):
    return torch.view_as_real(torch.fft.fftn(torch.view_as_complex(x.float().contiguous()), dim=(-2, -1), norm="ortho"))


def to_image(x):
    return torch.view_as_real(
        torch.fft.ifftn(torch.view_as_complex(x.float().contiguous()), dim=(-2, -1), norm="ortho")
    )


class Denoise(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(2, width, 3, padding=1), nn.InstanceNorm2d(width), nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 3, padding=1), nn.InstanceNorm2d(width), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2, 3, padding=1),
        )  # fmt: skip

    def forward(self, x):
        x = x.permute(0, 3, 1, 2)
        std, mean = torch.std_mean(x, dim=(1, 2, 3), keepdim=True)
        return (self.net((x - mean) / (std + 1e-6)) * std + mean).permute(0, 2, 3, 1)


class Unrolled(nn.Module):
    def __init__(self, steps=4):
        super().__init__()
        self.steps = nn.ModuleList(Denoise() for _ in range(steps))
        self.weight = nn.Parameter(torch.ones(steps))

    def forward(self, measured, mask):
        seen = mask[..., None]
        guess = measured
        for step, weight in zip(self.steps, self.weight, strict=True):
            correction = (guess - measured) * seen * weight
            guess = guess - correction - to_frequencies(step(to_image(guess)))
        image = to_image(guess)
        return torch.sqrt(image[..., 0].square() + image[..., 1].square() + 1e-9)


def make_model():
    return Unrolled()


def make_batch():
    image = torch.rand(4, 160, 160, 2)
    mask = (torch.rand(4, 1, 160) < 0.3).float().expand(4, 160, 160)
    return {"measured": to_frequencies(image) * mask[..., None], "mask": mask, "truth": image.square().sum(-1).sqrt()}


def loss_fn(output, batch):
    return F.l1_loss(output, batch["truth"])
