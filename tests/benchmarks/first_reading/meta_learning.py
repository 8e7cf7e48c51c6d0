"""Model-agnostic meta-learning of 5-way images: two inner steps by torch.autograd.grad through functional_call, as a
user writes it. Careful."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call


class Learner(nn.Module):
    def __init__(self, width=64, ways=8):
        super().__init__()
        layers = []
        for inner in (3, width, width, width):
            layers += [nn.Conv2d(inner, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(width * 4, ways)

    def forward(self, x):
        return self.head(self.body(x))


class MAML(nn.Module):
    def __init__(self, steps=2, rate=0.01):
        super().__init__()
        self.learner, self.steps, self.rate = Learner(), steps, rate

    def adapt(self, images, labels):
        weights = dict(self.learner.named_parameters())
        for _ in range(self.steps):
            loss = F.cross_entropy(functional_call(self.learner, weights, (images,)), labels)
            grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
            weights = {name: w - self.rate * g for (name, w), g in zip(weights.items(), grads, strict=True)}
        return weights

    def forward(self, support, support_labels, query):
        outs = []
        for images, labels, asked in zip(support, support_labels, query, strict=True):
            outs.append(functional_call(self.learner, self.adapt(images, labels), (asked,)))
        return torch.stack(outs)


def make_model():
    return MAML()


def make_batch():
    support, query = torch.rand(4, 40, 3, 32, 32), torch.rand(4, 80, 3, 32, 32)
    return (support, torch.randint(0, 8, (4, 40)), query), torch.randint(0, 8, (4, 80))


def loss_fn(output, batch):
    return F.cross_entropy(output.flatten(0, 1), batch[1].flatten())
