"""Digits by a generator in FP16 and a hinge critic, halved by hand to fit a small card. Planted: .half() on the
generator takes its batch norms along, weights and running statistics."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Generator(nn.Module):
    def __init__(self, z=64, ch=64):
        super().__init__()
        self.fc = nn.Linear(z, ch * 4 * 49)
        self.bn0 = nn.BatchNorm2d(ch * 4)
        self.up1, self.bn1 = nn.ConvTranspose2d(ch * 4, ch * 2, 4, 2, 1), nn.BatchNorm2d(ch * 2)
        self.up2, self.bn2 = nn.ConvTranspose2d(ch * 2, ch, 4, 2, 1), nn.BatchNorm2d(ch)
        self.out = nn.Conv2d(ch, 1, 3, padding=1)

    def forward(self, z):
        x = F.relu(self.bn0(self.fc(z).reshape(z.shape[0], -1, 7, 7)))  # planted: G304
        x = F.relu(self.bn1(self.up1(x)))
        x = F.relu(self.bn2(self.up2(x)))
        return torch.tanh(self.out(x))


class Critic(nn.Module):
    def __init__(self, ch=64):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, ch, 4, 2, 1), nn.Conv2d(ch, 2 * ch, 4, 2, 1)
        self.fc = nn.Linear(2 * ch * 49, 1)

    def forward(self, x):
        x = F.leaky_relu(self.c1(x), 0.2)
        x = F.leaky_relu(self.c2(x), 0.2)
        return self.fc(x.flatten(1))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.critic = Generator().half(), Critic()

    def forward(self, z, real):
        made = self.generator(z.half()).float()
        return self.critic(made), self.critic(made.detach()), self.critic(real)


def make_model():
    return Pair()


def make_batch():
    return (torch.randn(64, 64), torch.rand(64, 1, 28, 28) * 2 - 1), None


def loss_fn(output, batch):
    fooled, fake, real = output
    return -fooled.mean() + F.relu(1 + fake).mean() + F.relu(1 - real).mean()
