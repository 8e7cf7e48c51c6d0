"""A model whose layer is called several times in one forward, also under checkpointing."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Shared(nn.Module):
    """A layer of ``width`` features that is called three times in one forward."""

    def __init__(self, use_reentrant: bool | None = None, *, width: int = 8) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.head = nn.Linear(width, 3)
        self.use_reentrant = use_reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            if self.use_reentrant is None:
                x = torch.tanh(self.layer(x))
            else:
                x = checkpoint(lambda y: torch.tanh(self.layer(y)), x, use_reentrant=self.use_reentrant)
        return self.head(x)
