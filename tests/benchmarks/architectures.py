"""Small instances of transformers' architectures, from their own configuration classes and without any download."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import nn

SMALL: Mapping[str, Any] = {
    "hidden_size": 64, "d_model": 64, "n_embd": 64, "dim": 64, "embed_dim": 64, "word_embed_proj_dim": 64,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_decoder_layers": 2, "num_encoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "d_kv": 16,
    "intermediate_size": 128, "ffn_dim": 128, "d_ff": 128, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
    "n_inner": 128, "hidden_dim": 128, "moe_intermediate_size": 32, "num_local_experts": 4, "num_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "expert_ffn_hidden_size": 32,
    "vocab_size": 512, "max_position_embeddings": 128, "n_positions": 128, "max_seq_len": 128,
    "image_size": 32, "patch_size": 8, "projection_dim": 32, "num_mel_bins": 16, "max_source_positions": 32,
    "max_target_positions": 64, "state_size": 8, "conv_kernel": 4, "type_vocab_size": 2, "num_labels": 10,
    "decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0,
}  # fmt: skip
"""Values for whichever of these fields a configuration has."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One architecture: its model class, the fields it needs beside SMALL, and what kind of batch it takes."""

    model: str
    batch: str = "text"
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def config(self) -> Any:
        """Its configuration, small."""
        return small_config(getattr(transformers, self.model).config_class, self.fields)

    def make_model(self) -> nn.Module:
        """The model, with random weights."""
        return getattr(transformers, self.model)(self.config())

    def make_batch(self) -> dict[str, torch.Tensor]:
        """A batch of two samples."""
        return BATCHES[self.batch](self.config())


def small_config(cls: Any, fields: Mapping[str, Any]) -> Any:
    """An instance of a configuration class with SMALL's values and ``fields``, also in its sub-configurations."""
    default = cls()
    subs = {
        name: small_config(type(value), fields.get(name, {})).to_dict()
        for name, value in vars(default).items()
        if isinstance(value, transformers.PreTrainedConfig)
    }
    known = {name: value for name, value in SMALL.items() if _is_plain_field(default, name)}
    own = {name: value for name, value in fields.items() if name not in subs}
    return cls(**(known | subs | own))


def _is_plain_field(config: Any, name: str) -> bool:
    return isinstance(getattr(config, name, None), int) and name in vars(config) | getattr(config, "attribute_map", {})


def _ids(config: Any, length: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = getattr(text, "vocab_size", None) or 512
    return torch.randint(4, vocabulary, (2, length), generator=generator)


def _text(config: Any) -> dict[str, torch.Tensor]:
    ids = _ids(config)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _causal(config: Any) -> dict[str, torch.Tensor]:
    return _text(config) | {"labels": _ids(config)}


def _seq2seq(config: Any) -> dict[str, torch.Tensor]:
    return _text(config) | {"decoder_input_ids": _ids(config), "labels": _ids(config)}


def _pixels(config: Any) -> torch.Tensor:
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 64
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return torch.randn(2, getattr(vision, "num_channels", 3), height, width)


def _image(config: Any) -> dict[str, torch.Tensor]:
    return {"pixel_values": _pixels(config)}


def _classified(config: Any) -> dict[str, torch.Tensor]:
    return _image(config) | {"labels": torch.tensor([0, 1])}


def _image_text(config: Any) -> dict[str, torch.Tensor]:
    return _image(config) | _text(config)


def _waveform(config: Any) -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(2, 4000)}


def _spectrogram(config: Any) -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(2, config.num_mel_bins, 64), "decoder_input_ids": _ids(config, 8)}


def _video(config: Any) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, config.num_frames, 3, config.image_size, config.image_size)}


BATCHES: Mapping[str, Callable[[Any], dict[str, torch.Tensor]]] = {
    "text": _text, "causal": _causal, "seq2seq": _seq2seq, "image": _image, "classified": _classified,
    "image-text": _image_text, "waveform": _waveform, "spectrogram": _spectrogram, "video": _video,
}  # fmt: skip

_CAUSAL = """GPT2LMHeadModel LlamaForCausalLM MistralForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM GemmaForCausalLM
Gemma2ForCausalLM Gemma3ForCausalLM PhiForCausalLM Phi3ForCausalLM GPTNeoXForCausalLM GPTNeoForCausalLM GPTJForCausalLM
OPTForCausalLM BloomForCausalLM FalconForCausalLM MptForCausalLM StableLmForCausalLM Starcoder2ForCausalLM
CohereForCausalLM OlmoForCausalLM Olmo2ForCausalLM GraniteForCausalLM NemotronForCausalLM GlmForCausalLM
CodeGenForCausalLM BioGptForCausalLM XGLMForCausalLM GPTBigCodeForCausalLM PersimmonForCausalLM HeliumForCausalLM
SmolLM3ForCausalLM MixtralForCausalLM Qwen2MoeForCausalLM Qwen3MoeForCausalLM OlmoeForCausalLM GraniteMoeForCausalLM
JetMoeForCausalLM DeepseekV2ForCausalLM DeepseekV3ForCausalLM PhimoeForCausalLM
MambaForCausalLM Mamba2ForCausalLM FalconMambaForCausalLM RwkvForCausalLM RecurrentGemmaForCausalLM BambaForCausalLM
JambaForCausalLM CTRLLMHeadModel OpenAIGPTLMHeadModel XLNetLMHeadModel"""
_TEXT = """BertModel RobertaModel DistilBertModel AlbertModel ElectraModel DebertaModel DebertaV2Model MPNetModel
ConvBertModel FNetModel FunnelModel SqueezeBertModel MobileBertModel XLMModel XLMRobertaModel LongformerModel
BigBirdModel NystromformerModel YosoModel CanineModel IBertModel MegatronBertModel RoFormerModel RemBertModel
ModernBertModel LayoutLMModel ErnieModel CamembertModel LukeModel SplinterModel EsmModel MraModel"""
_SEQ2SEQ = """T5ForConditionalGeneration BartForConditionalGeneration MBartForConditionalGeneration
PegasusForConditionalGeneration MarianMTModel BlenderbotForConditionalGeneration
BlenderbotSmallForConditionalGeneration M2M100ForConditionalGeneration MT5ForConditionalGeneration
LongT5ForConditionalGeneration PLBartForConditionalGeneration LEDForConditionalGeneration
BigBirdPegasusForConditionalGeneration ProphetNetForConditionalGeneration UMT5ForConditionalGeneration
SwitchTransformersForConditionalGeneration"""
_IMAGE = """ViTForImageClassification DeiTForImageClassification BeitForImageClassification
SwinForImageClassification Swinv2ForImageClassification ConvNextForImageClassification
ConvNextV2ForImageClassification ResNetForImageClassification RegNetForImageClassification
MobileNetV1ForImageClassification MobileNetV2ForImageClassification MobileViTForImageClassification
MobileViTV2ForImageClassification EfficientNetForImageClassification PvtForImageClassification
PvtV2ForImageClassification SegformerForImageClassification PoolFormerForImageClassification
LevitForImageClassification CvtForImageClassification FocalNetForImageClassification
Dinov2ForImageClassification BitForImageClassification HieraForImageClassification SwiftFormerForImageClassification
"""

_DEEPSEEK = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
             "head_dim": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}  # fmt: skip
_SWIN = {"depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "patch_size": 4}
_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
    "GPTJForCausalLM": {"rotary_dim": 8},
    "CodeGenForCausalLM": {"rotary_dim": 8},
    "NemotronForCausalLM": {"head_dim": 16, "num_key_value_heads": 2},
    "DeepseekV2ForCausalLM": {**_DEEPSEEK, "num_experts_per_tok": 2},
    "DeepseekV3ForCausalLM": _DEEPSEEK,
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "RecurrentGemmaForCausalLM": {"num_hidden_layers": 3},
    "BambaForCausalLM": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 16},
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "SqueezeBertModel": {"embedding_size": 64},
    "EsmModel": {"vocab_size": 64, "mask_token_id": 3, "pad_token_id": 1},
    "SwinForImageClassification": {"embed_dim": 16, **_SWIN},
    "Swinv2ForImageClassification": {"embed_dim": 16, **_SWIN},
    "ConvNextForImageClassification": {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
    "ConvNextV2ForImageClassification": {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "patch_size": 4},
    "MobileViTV2ForImageClassification": {"image_size": 64, "patch_size": 2},
    "EfficientNetForImageClassification": {"hidden_dim": 1280, "width_coefficient": 1.0, "depth_coefficient": 0.5},
    "LevitForImageClassification": {"image_size": 224, "patch_size": 16},
}  # fmt: skip

ARCHITECTURES: tuple[Architecture, ...] = (
    *(Architecture(name, "causal", _FIELDS.get(name, {})) for name in _CAUSAL.split()),
    *(Architecture(name, "text", _FIELDS.get(name, {})) for name in _TEXT.split()),
    *(Architecture(name, "seq2seq", _FIELDS.get(name, {})) for name in _SEQ2SEQ.split()),
    *(Architecture(name, "classified", _FIELDS.get(name, {})) for name in _IMAGE.split()),
    Architecture("ViTMAEForPreTraining", "image"),
    Architecture("CLIPModel", "image-text"),
    Architecture("SiglipModel", "image-text"),
    Architecture("BlipForConditionalGeneration", "image-text"),
    Architecture("DPTForDepthEstimation", "image", {"num_hidden_layers": 12}),
    Architecture("SegformerForSemanticSegmentation", "image"),
    Architecture("YolosForObjectDetection", "image"),
    Architecture("WhisperForConditionalGeneration", "spectrogram"),
    Architecture("Wav2Vec2Model", "waveform"),
    Architecture("HubertModel", "waveform"),
    Architecture("WavLMModel", "waveform"),
    Architecture("SEWModel", "waveform"),
    Architecture("UniSpeechModel", "waveform"),
    Architecture("VideoMAEModel", "video"),
    Architecture("TimesformerModel", "video"),
)
