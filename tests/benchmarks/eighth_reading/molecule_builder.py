"""A generative flow network that builds strings of blocks, trained by trajectory balance. Planted: the padding
after a stop is an action that the mask forbids, so its logarithm is -inf, and the mask of steps multiplies it
by zero."""

import torch
import torch.nn as nn

STOP, PAD = 0, 0


class StepPolicy(nn.Module):
    def __init__(self, blocks, hidden):
        super().__init__()
        self.embed = nn.Embedding(blocks + 1, hidden)
        self.rnn = nn.GRU(hidden, hidden, batch_first=True)
        self.forward_head = nn.Linear(hidden, blocks)

    def forward(self, states):
        h, _ = self.rnn(self.embed(states))
        return self.forward_head(h)


class TrajectoryBalance(nn.Module):
    """The squared difference of both sides, for each trajectory of the batch."""

    def __init__(self, blocks=24, hidden=128, shortest=3):
        super().__init__()
        self.policy = StepPolicy(blocks, hidden)
        self.log_z = nn.Parameter(torch.zeros(()))
        self.blocks, self.shortest = blocks, shortest

    def legal(self, actions):
        """A molecule of fewer blocks than the shortest may not stop, and one that has stopped may do nothing."""
        length = actions.shape[1]
        step = torch.arange(length, device=actions.device)
        mask = torch.ones(*actions.shape, self.blocks, dtype=torch.bool, device=actions.device)
        mask[:, step < self.shortest, STOP] = False
        ended = (actions == STOP).cumsum(1) > 0
        over = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1)
        mask[..., STOP] &= ~over
        return mask, ~over

    def forward(self, actions, log_reward):
        start = torch.full_like(actions[:, :1], self.blocks)
        states = torch.cat([start, actions[:, :-1]], dim=1)
        legal, alive = self.legal(actions)
        logits = self.policy(states).masked_fill(~legal, float("-inf"))
        log_pf = logits.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)
        log_pf = (log_pf * alive.float()).sum(1)  # planted: G205
        return self.log_z + log_pf - log_reward


def make_model():
    return TrajectoryBalance()


def make_batch():
    lengths = torch.randint(4, 15, (64,))
    actions = torch.randint(1, 24, (64, 16))
    actions[torch.arange(16) >= lengths[:, None]] = STOP
    reward = torch.rand(64) * 8.0
    return (actions, torch.log(reward.clamp(min=1e-3))), None


def loss_fn(output, batch):
    return output.square().mean()
