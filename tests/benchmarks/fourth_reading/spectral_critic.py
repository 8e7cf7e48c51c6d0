"""A GAN with spectral norm, self-attention without a scale (as its authors have it) and hinge losses. Careful."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.parametrizations import spectral_norm


class SelfAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.f, self.g = (spectral_norm(nn.Conv1d(width, width // 8, 1, bias=False)) for _ in range(2))
        self.h = spectral_norm(nn.Conv1d(width, width, 1, bias=False))
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        flat = x.flatten(2)
        share = F.softmax(torch.bmm(self.f(flat).transpose(1, 2), self.g(flat)), dim=1)
        return x + self.gamma * torch.bmm(self.h(flat), share).view_as(x)


class Critic(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.net = nn.Sequential(
            spectral_norm(nn.Conv2d(3, width, 4, 2, 1)), nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, 2 * width, 4, 2, 1)), nn.LeakyReLU(0.2), SelfAttention(2 * width),
            spectral_norm(nn.Conv2d(2 * width, 4 * width, 4, 2, 1)), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.out = spectral_norm(nn.Linear(4 * width, 1))

    def forward(self, image):
        return self.out(self.net(image).mean((2, 3))).squeeze(1)


class Game(nn.Module):
    def __init__(self, noise=128, width=64):
        super().__init__()
        self.start = nn.Linear(noise, 4 * width * 16)
        self.maker = nn.Sequential(
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        self.critic = Critic(width)

    def forward(self, noise, image):
        made = self.maker(self.start(noise).view(len(noise), -1, 4, 4))
        return self.critic(image), self.critic(made.detach()), self.critic(made)


def make_model():
    return Game()


def make_batch():
    return {"noise": torch.randn(16, 128), "image": 2 * torch.rand(16, 3, 32, 32) - 1}


def loss_fn(output, batch):
    real, made, fooled = (each.float() for each in output)
    return F.relu(1 - real).mean() + F.relu(1 + made).mean() - fooled.mean()
