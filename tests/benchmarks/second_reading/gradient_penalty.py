"""A Wasserstein critic whose forward takes the gradient at points between real and made images. Careful."""

import torch
from torch import nn


class Critic(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1), nn.InstanceNorm2d(2 * width, affine=True), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, 2, 1), nn.InstanceNorm2d(4 * width, affine=True), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(4 * width * 64, 1),
        )  # fmt: skip

    def forward(self, image):
        return self.net(image).squeeze(1)


class Penalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic = Critic()

    def forward(self, real, fake):
        share = torch.rand(len(real), 1, 1, 1, device=real.device)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        penalty = (gradient.flatten(1).norm(2, dim=1) - 1).square().mean()
        return self.critic(real), self.critic(fake), penalty


def make_model():
    return Penalised()


def make_batch():
    return (torch.rand(32, 3, 64, 64) * 2 - 1, torch.rand(32, 3, 64, 64) * 2 - 1), torch.zeros(32)


def loss_fn(output, batch):
    real, fake, penalty = output
    return fake.mean() - real.mean() + 10 * penalty
