"""Models of timm and torchvision for the coverage benchmark; they need a build of torch that both of them fit."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
from typing import Any

import torch
from torch import nn

_TIMM = """resnet18 resnext50_32x4d seresnet50 efficientnet_b0 efficientnetv2_rw_t mobilenetv3_small_100
mobilenetv4_conv_small vit_tiny_patch16_224 deit_tiny_patch16_224 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256
convnext_atto convnextv2_atto beit_base_patch16_224 eva02_tiny_patch14_224 maxvit_pico_rw_256 coatnet_pico_rw_224
mixer_s16_224 resmlp_12_224 gmlp_ti16_224 poolformer_s12 edgenext_xx_small mobilevit_xxs mobilevitv2_050 levit_128s
efficientformer_l1 efficientvit_b0 efficientvit_m0 fastvit_t8 repvgg_a0 repghostnet_050 ghostnet_050 hrnet_w18_small
dla34 densenet121 inception_v3 inception_v4 xception41 nasnetalarge pnasnet5large regnety_002 rexnet_100 tresnet_m vgg11
vovnet39a cspdarknet53 darknet53 dpn48b ese_vovnet19b_dw focalnet_tiny_srf gcvit_xxtiny hiera_tiny_224
inception_next_atto caformer_s18 nest_tiny nfnet_f0 pvt_v2_b0 res2net50_26w_4s resnest14d resnetv2_50 sequencer2d_s
skresnet18 starnet_s1 tnt_s_patch16_224 twins_pcpvt_small vitamin_small_224 visformer_tiny volo_d1_224
xcit_nano_12_p16_224 crossvit_9_240 davit_tiny convit_tiny hgnet_tiny lcnet_050 tinynet_e tiny_vit_5m_224
samvit_base_patch16 lambda_resnet26t halonet26t botnet26t_256 eca_botnext26ts_256 bat_resnext26ts mambaout_femto
rdnet_tiny shvit_s1 swiftformer_xs fasternet_t0"""
_TORCHVISION = """alexnet googlenet inception_v3 squeezenet1_0 shufflenet_v2_x0_5 mnasnet0_5 maxvit_t swin_t swin_v2_t
vit_b_16 segmentation.fcn_resnet50 segmentation.deeplabv3_mobilenet_v3_large segmentation.lraspp_mobilenet_v3_large
video.r3d_18 video.mvit_v1_b video.swin3d_t optical_flow.raft_small detection.fasterrcnn_mobilenet_v3_large_fpn
detection.retinanet_resnet50_fpn detection.ssd300_vgg16 detection.maskrcnn_resnet50_fpn
detection.keypointrcnn_resnet50_fpn"""


@dataclasses.dataclass(frozen=True)
class VisionModel:
    """A model of timm, or of a part of torchvision, by its name there."""

    package: str
    name: str

    @property
    def model(self) -> str:
        """Its name in the report."""
        return f"{self.package}:{self.name}"

    def make_model(self) -> nn.Module:
        """The model, with random weights."""
        if self.package == "timm":
            return importlib.import_module("timm").create_model(self.name)
        part, _, name = self.name.rpartition(".")
        factory = getattr(importlib.import_module(f"torchvision.models.{part}".rstrip(".")), name)
        known = inspect.signature(factory).parameters
        return factory(**{key: None for key in ("weights", "weights_backbone") if key in known})

    def make_batch(self) -> Any:
        """Two samples, as the model takes them in training."""
        if self.name.startswith("detection."):
            return ([torch.rand(3, 128, 128) for _ in range(2)], [_boxes() for _ in range(2)])
        if self.name.startswith("optical_flow."):
            return {"image1": torch.randn(2, 3, 128, 128), "image2": torch.randn(2, 3, 128, 128)}
        if self.name.startswith("video."):
            side = 112 if "r3d" in self.name else 224
            return torch.randn(2, 3, 16, side, side)
        return torch.randn(2, 3, *[self._side()] * 2)

    def _side(self) -> int:
        if self.package == "timm":
            model = importlib.import_module("timm").create_model(self.name)
            return int(model.default_cfg["input_size"][-1])
        return 299 if "inception" in self.name else 224


def _boxes() -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor([[10.0, 10.0, 50.0, 60.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.zeros(1, 128, 128, dtype=torch.uint8),
        "keypoints": torch.ones(1, 17, 3),
    }


def installed_models() -> list[VisionModel]:
    """Those whose package is installed."""
    named = {"timm": _TIMM, "torchvision": _TORCHVISION}
    return [
        VisionModel(package, name)
        for package, names in named.items()
        if importlib.util.find_spec(package) is not None
        for name in names.split()
    ]
