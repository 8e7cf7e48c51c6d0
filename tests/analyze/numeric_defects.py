"""Small modules with a numerical defect each, beside a stable twin that computes the same.

The kinds are those of the published benchmark of 79 numerical bugs (GRIST, ESEC/FSE 2021: logarithms of softmax,
sigmoid and unbounded values, exponentials, square roots, divisions), and the ones that only a narrow format brings.
A twin has no defect in FP32, and none in the format named; ``format`` is that in which the defect shows.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Pair:
    """A defect and its twin, as the lines of a forward over ``h``, the output of a linear layer, or as a whole file.

    ``rules``: any of these finds it. ``format``: where it shows; in FP32 means in every format.
    """

    name: str
    defect: str
    twin: str
    rules: tuple[str, ...]
    format: str = "fp32"
    whole: bool = False


PAIRS = (
    Pair("log of softmax", "return torch.log(torch.softmax(h, -1))", "return torch.log_softmax(h, -1)", ("G204",)),
    Pair("log of softmax through a variable", "p = h.softmax(dim=1)\nreturn -(p.log() * p).sum(1)",
         "q = h.log_softmax(dim=1)\nreturn -(q * q.exp()).sum(1)", ("G204",)),
    Pair("log of softmax with eps", "return torch.log(torch.softmax(h, -1) + 0.0)",
         "return torch.log(torch.softmax(h, -1) + 1e-7)", ("G204",)),
    Pair("log of a clamped softmax", "return torch.log(torch.softmax(h, -1).clamp(0, 1))",
         "return torch.log(torch.softmax(h, -1).clamp(1e-6, 1))", ("G204",)),
    Pair("log of sigmoid", "return torch.log(torch.sigmoid(h))", "return F.logsigmoid(h)", ("G204",)),
    Pair("log of one minus sigmoid", "return torch.log(1 - torch.sigmoid(h))", "return F.logsigmoid(-h)", ("G204",)),
    Pair("binary cross entropy by hand",
         "p = torch.sigmoid(h)\nreturn -(t * torch.log(p) + (1 - t) * torch.log(1 - p)).mean()",
         "return F.binary_cross_entropy_with_logits(h, t)", ("G204",)),
    Pair("softplus by hand", "return torch.log(1 + torch.exp(h))", "return F.softplus(h)", ("G203",)),
    Pair("softplus by hand with log1p", "return torch.log1p(torch.exp(h))", "return F.softplus(h)", ("G203",)),
    Pair("logsumexp by hand", "return torch.log(torch.exp(h).sum(-1))", "return torch.logsumexp(h, -1)",
         ("G203", "G204")),
    Pair("logsumexp by hand, shifted", "return torch.log(torch.exp(h).sum(-1))",
         "m = h.amax(-1, keepdim=True)\nreturn torch.log(torch.exp(h - m).sum(-1)) + m.squeeze(-1)", ("G203", "G204")),
    Pair("softmax by hand", "e = torch.exp(h)\nreturn e / e.sum(-1, keepdim=True)",
         "e = torch.exp(h - h.max(dim=-1, keepdim=True).values)\nreturn e / e.sum(-1, keepdim=True)", ("G203",)),
    Pair("log of a sigmoid by hand", "return torch.log(1 / (1 + torch.exp(-h)))", "return F.logsigmoid(h)",
         ("G203", "G204")),
    Pair("sigmoid by hand, whose gradient is not", "return 1 / (1 + torch.exp(-h))", "return torch.sigmoid(h)",
         ("G203",)),
    Pair("log of an unbounded output", "return torch.log(h)", "return torch.log(F.softplus(h) + 1e-6)", ("G204",)),
    Pair("log of relu", "return torch.log(F.relu(h))", "return torch.log(F.relu(h) + 1)", ("G204",)),
    Pair("log of a square", "return torch.log(h.pow(2))", "return torch.log(h.pow(2) + 1e-6)", ("G204",)),
    Pair("root of an unbounded output", "return torch.sqrt(h)", "return torch.sqrt(h.abs() + 1e-6)", ("G206",)),
    Pair("root of a sum of squares", "return torch.sqrt((h * h).sum(-1))",
         "return torch.sqrt((h.float() * h.float()).sum(-1) + 1e-6)", ("G206",)),
    Pair("distance by hand", "return (h - x).pow(2).sum(-1).sqrt()", "return (h - x).pow(2).sum(-1).add(1e-6).sqrt()",
         ("G206",)),
    Pair("division by a norm", "return h / h.norm(dim=-1, keepdim=True)",
         "return h / (h.norm(dim=-1, keepdim=True) + 1e-6)", ("G205",)),
    Pair("division by a sum of relu", "r = F.relu(h)\nreturn r / r.sum(-1, keepdim=True)",
         "r = F.relu(h)\nreturn r / (r.sum(-1, keepdim=True) + 1e-6)", ("G205",)),
    Pair("division by a deviation", "return (h - h.mean()) / h.float().std()",
         "return (h - h.mean()) / (h.float().std() + 1e-6)", ("G205",)),
    Pair("reciprocal of relu", "return torch.reciprocal(F.relu(h))", "return torch.reciprocal(F.relu(h) + 1)",
         ("G205",)),
    Pair("inverse root by hand", "return h * torch.rsqrt((h * h).float().mean(-1, keepdim=True))",
         "g = h.float()\nreturn g * torch.rsqrt((g * g).mean(-1, keepdim=True) + 1e-6)", ("G206", "G214")),
    Pair("variance by two means", "return (h * h).mean(-1) - h.mean(-1) ** 2", "return h.float().var(-1)", ("G218",)),
    Pair("an eps lost in a denominator", "return h / (h.abs().mean(-1, keepdim=True) + 1e-8)",
         "return h / (h.float().abs().mean(-1, keepdim=True) + 1e-8)", ("G205",), "fp16"),
    Pair("an eps lost under a root", "return torch.sqrt(h.abs() + 1e-9)", "return torch.sqrt(h.float().abs() + 1e-9)",
         ("G206",), "fp16"),
    Pair("an eps lost in a logarithm", "return torch.log(F.relu(h) + 1e-10)",
         "return torch.log(F.relu(h).float() + 1e-10)", ("G204",), "fp16"),
    Pair("a square in fp16", "return (h * h).mean(-1)", "return h.pow(2).mean(-1)", ("G214",), "fp16"),
    Pair("a variance in fp16", "return h.var(-1)", "return h.float().var(-1)", ("G208",), "fp16"),
    Pair("whitening by a variance in fp16", "return h / (h.var(-1, keepdim=True).sqrt() + 1e-5)",
         "return F.layer_norm(h, h.shape[-1:])", ("G208",), "fp16"),
    Pair("atanh next to 1", "return torch.atanh(h.clamp(-0.9999, 0.9999))",
         "return torch.atanh(h.float().clamp(-0.9999, 0.9999))", ("G213",), "bf16"),
    Pair("logit of a sigmoid", "return torch.logit(torch.sigmoid(h))",
         "return torch.logit(torch.sigmoid(h.float()).clamp(1e-6, 1 - 1e-6))", ("G213",), "bf16"),
    Pair("a mask of ones in a linear", "return h @ torch.arange(1024.0, device=h.device)[:64 * 16].view(64, 16)",
         "return h @ torch.arange(64.0, device=h.device).view(64, 1)", ("G211",), "bf16"),
    Pair("a mask of -1e9", "m = torch.ones(64, 64, dtype=torch.bool).triu(1)\nreturn (h @ x).masked_fill(m, -1e9)",
         "m = torch.ones(64, 64, dtype=torch.bool).triu(1)\ns = h @ x\n"
         "return s.masked_fill(m, torch.finfo(torch.float16).min)", ("G201",), "fp16"),
    Pair("an inverse under autocast", "return torch.linalg.inv(h @ h.T)", "return torch.linalg.inv((h @ h.T).float())",
         ("G404",), "bf16"),
    Pair("a spectrum under autocast", "return torch.fft.rfft(h).abs()", "return torch.fft.rfft(h.float()).abs()",
         ("G403",), "bf16"),
)  # fmt: skip
