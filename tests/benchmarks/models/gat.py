"""GATv2 on a graph of papers: attention over the edges into each node by scattered maxima and sums, three layers of
four heads; 170,000 nodes and 1,200,000 edges."""

import torch
import torch.nn.functional as F
from torch import nn

NODES, EDGES, FEATURES, CLASSES, HEADS, WIDTH, LAYERS = 170_000, 1_200_000, 128, 40, 4, 64, 3


def softmax_at(scores, target, nodes):
    """Softmax of the scores of the edges that end at the same node."""
    places = target[:, None].expand_as(scores)
    most = torch.full((nodes, scores.shape[1]), float("-inf"), dtype=scores.dtype, device=scores.device)
    most = most.scatter_reduce(0, places, scores.detach(), "amax", include_self=True)
    scores = (scores - most[target]).exp()
    total = torch.zeros(nodes, scores.shape[1], dtype=scores.dtype, device=scores.device)
    return scores / (total.index_add(0, target, scores)[target] + 1e-16)


class Attention(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.source, self.target = nn.Linear(inner, HEADS * WIDTH), nn.Linear(inner, HEADS * WIDTH)
        self.score = nn.Parameter(torch.empty(HEADS, WIDTH))
        nn.init.xavier_uniform_(self.score)
        self.skip = nn.Linear(inner, HEADS * WIDTH)
        self.norm = nn.LayerNorm(HEADS * WIDTH)

    def forward(self, x, source, target):
        left = self.source(x).view(-1, HEADS, WIDTH)
        right = self.target(x).view(-1, HEADS, WIDTH)
        sent = left[source]
        scores = (F.leaky_relu(sent + right[target], 0.2) * self.score).sum(-1)
        weights = F.dropout(softmax_at(scores, target, len(x)), 0.1, self.training)
        messages = (sent * weights[..., None]).flatten(1)
        total = torch.zeros(len(x), HEADS * WIDTH, dtype=messages.dtype, device=x.device)
        return F.elu(self.norm(total.index_add(0, target, messages) + self.skip(x)))


class GAT(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Attention(FEATURES if i == 0 else HEADS * WIDTH) for i in range(LAYERS))
        self.head = nn.Linear(HEADS * WIDTH, CLASSES)

    def forward(self, x, edges):
        source, target = edges
        for layer in self.layers:
            x = F.dropout(layer(x, source, target), 0.5, self.training)
        return self.head(x)


def make_model():
    return GAT()


def make_batch():
    loops = torch.arange(NODES).expand(2, -1)
    edges = torch.cat([torch.randint(0, NODES, (2, EDGES - NODES)), loops], dim=1)
    return (torch.randn(NODES, FEATURES), edges), torch.randint(0, CLASSES, (NODES,))


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])
