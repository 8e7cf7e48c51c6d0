"""RT-DETR of transformers, from a small configuration, with the labels of two images. Careful."""

import torch
from transformers import RTDetrConfig, RTDetrForObjectDetection
from transformers.models.rt_detr.configuration_rt_detr_resnet import RTDetrResNetConfig


def make_model():
    backbone = RTDetrResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[128, 256, 512],
        d_model=128,
        encoder_hidden_dim=128,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        decoder_layers=2,
        decoder_in_channels=[128, 128, 128],
        decoder_attention_heads=4,
        encoder_attention_heads=4,
        num_queries=64,
        num_denoising=0,
        num_labels=80,
    )
    return RTDetrForObjectDetection(config)


def make_batch():
    return {"pixel_values": torch.rand(4, 3, 256, 256)}


def loss_fn(output, batch):
    return output.logits.float().sigmoid().mean() + output.pred_boxes.float().mean()
