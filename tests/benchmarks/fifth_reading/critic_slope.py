"""WGAN-GP critic step. Planted: square root of zero: infinite gradient."""

import torch
import torch.nn as nn


class Critic(nn.Module):
    def __init__(self, ch=64):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, ch, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(ch, 2 * ch, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * ch, 4 * ch, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(4 * ch * 16, 1),
        )

    def forward(self, x):
        return self.main(x)


class CriticStep(nn.Module):
    lambda_gp = 10.0

    def __init__(self):
        super().__init__()
        self.critic = Critic()

    def penalty(self, real, fake):
        mix = (0.5 * real + 0.5 * fake).detach().requires_grad_(True)
        score = self.critic(mix)
        (grad,) = torch.autograd.grad(score.sum(), mix, create_graph=True)
        slope = torch.sqrt(grad.flatten(1).square().sum(dim=1))  # planted: G206
        return (slope - 1).square().mean()

    def forward(self, real, fake):
        return self.critic(fake).mean() - self.critic(real).mean() + self.lambda_gp * self.penalty(real, fake)


def make_model():
    return CriticStep()


def make_batch():
    return (torch.rand(16, 3, 32, 32) * 2 - 1, torch.rand(16, 3, 32, 32) * 2 - 1), None


def loss_fn(output, batch):
    return output
