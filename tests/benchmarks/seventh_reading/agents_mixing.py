"""Cooperating agents by a monotonic mixing network (QMIX). Planted: actions that are not available get -inf by a
product with their mask, and zero times -inf is NaN."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class AgentNet(nn.Module):
    def __init__(self, obs=80, actions=16, hidden=64):
        super().__init__()
        self.fc1 = nn.Linear(obs, hidden)
        self.cell = nn.GRUCell(hidden, hidden)
        self.fc2 = nn.Linear(hidden, actions)

    def forward(self, obs, h):
        x = F.relu(self.fc1(obs))
        h = self.cell(x, h)
        return self.fc2(h), h


class Mixer(nn.Module):
    def __init__(self, agents=8, state=128, embed=32):
        super().__init__()
        self.agents, self.embed = agents, embed
        self.w1, self.b1 = nn.Linear(state, agents * embed), nn.Linear(state, embed)
        self.w2 = nn.Linear(state, embed)
        self.v = nn.Sequential(nn.Linear(state, embed), nn.ReLU(), nn.Linear(embed, 1))

    def forward(self, qs, state):
        w1 = self.w1(state).abs().view(-1, self.agents, self.embed)
        hidden = F.elu(torch.bmm(qs.unsqueeze(1), w1) + self.b1(state).unsqueeze(1))
        w2 = self.w2(state).abs().unsqueeze(-1)
        return (torch.bmm(hidden, w2).squeeze(-1) + self.v(state)).squeeze(-1)


class Team(nn.Module):
    def __init__(self, agents=8, obs=80, hidden=64):
        super().__init__()
        self.hidden = hidden
        self.agent, self.mixer = AgentNet(obs, 16, hidden), Mixer(agents)

    def forward(self, obs, state, available):
        steps, batch, agents, width = obs.shape
        h = obs.new_zeros(batch * agents, self.hidden)
        totals = []
        for t in range(steps):
            q, h = self.agent(obs[t].reshape(-1, width), h)
            q = q.view(batch, agents, -1).float()
            blocked = (1 - available[t]) * float("-inf")  # planted: G201|G205
            best = (q + blocked).max(-1).values
            totals.append(self.mixer(best, state[t]))
        return torch.stack(totals)


def make_model():
    return Team()


def make_batch():
    available = (torch.rand(6, 16, 8, 16) > 0.4).float()
    available[..., 0] = 1
    inputs = torch.randn(6, 16, 8, 80), torch.randn(6, 16, 128), available
    return inputs, torch.randn(6, 16)


def loss_fn(output, batch):
    return F.smooth_l1_loss(output, batch[1])
