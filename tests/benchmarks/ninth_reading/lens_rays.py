"""Designs a lens by tracing rays: two learnt curvatures bend rays from air into glass and out again, and rays that do
not get out again (total reflection) are left out of the spot's size."""

import torch
import torch.nn as nn


def meet(origin, way, curvature, place):
    """Where rays (..., 2: along the axis, across) meet a parabola at ``place`` on the axis, after two Newton steps."""
    t = (place - origin[..., 0]) / way[..., 0]
    for _ in range(2):
        point = origin + t[..., None] * way
        off = point[..., 0] - place - 0.5 * curvature * point[..., 1].square()
        slope = way[..., 0] - curvature * point[..., 1] * way[..., 1]
        t = t - off / slope.clamp(min=0.1)
    return origin + t[..., None] * way


def refract(way, normal, ratio):
    """Snell's law: the new way, and which rays get through."""
    cos_in = -(way * normal).sum(-1)
    rest = 1.0 - ratio**2 * (1.0 - cos_in.square())
    through = rest > 0
    cos_out = torch.where(through, torch.sqrt(rest), 0.0)  # planted: G206
    return ratio * way + (ratio * cos_in - cos_out)[..., None] * normal, through


class Lens(nn.Module):
    def __init__(self, glass=1.6, thick=6.0):
        super().__init__()
        self.glass, self.thick = glass, thick
        self.curvature = nn.Parameter(torch.tensor([0.02, -0.06]))

    def surface(self, origin, way, number, place, ratio):
        point = meet(origin, way, self.curvature[number], place)
        tilt = self.curvature[number] * point[..., 1]
        normal = torch.stack((-torch.ones_like(tilt), tilt), -1) / (1.0 + tilt.square()).sqrt()[..., None]
        way, through = refract(way, normal, ratio)
        return point, way, through

    def forward(self, origin, way):
        origin, way, a = self.surface(origin, way, 0, 0.0, 1.0 / self.glass)
        origin, way, b = self.surface(origin, way, 1, self.thick, self.glass)
        at = (60.0 - origin[..., 0]) / way[..., 0].clamp(min=0.1)
        return origin[..., 1] + at * way[..., 1], a & b


def make_model():
    return Lens()


def make_batch():
    height = torch.linspace(-12.0, 12.0, 25)
    angle = torch.linspace(-0.5, 0.5, 11)[:, None].expand(11, 25)
    origin = torch.stack((torch.full((11, 25), -10.0), height.expand(11, 25)), -1)
    return {"origin": origin, "way": torch.stack((angle.cos(), angle.sin()), -1)}


def loss_fn(output, batch):
    height, through = output
    kept = through.float()
    mean = (height * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp(min=1.0)
    return ((height - mean).square() * kept).sum() / kept.sum().clamp(min=1.0)
