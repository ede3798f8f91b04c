"""The architectures of transformers, each as a small model with random weights and a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

__all__ = ["KINDS", "MODELS", "Small", "batch_of", "build"]

KINDS = {
    "decoder": "causal language models",
    "mixture": "causal language models with a mixture of experts",
    "recurrent": "causal language models with states",
    "encoder": "encoders of text, with a classifier",
    "encoder-decoder": "encoders with decoders",
    "images": "models of images, with a classifier",
    "sound": "models of sound",
    "pairs": "models of images and texts",
}

VOCABULARY, LENGTH, EDGE = 64, 8, 32
_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WIDE = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128,
         "num_hidden_layers": 2, "num_attention_heads": 4}  # fmt: skip
_LLAMA = {**_WIDE, **_ENDS, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64}
_MIXTURE = {
    **_LLAMA, "moe_intermediate_size": 32, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_k": 2,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "moe_layer_start_index": 1,
    "shared_expert_intermediate_size": 32, "tie_word_embeddings": False,
}  # fmt: skip
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16,
           "v_head_dim": 16, "head_dim": 16, "num_key_value_heads": 4}  # fmt: skip
_GPT = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
_STATES = {"time_step_limit": (0.0, 100.0), "chunk_size": 8, "mamba_chunk_size": 8,
           "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8}  # fmt: skip
_SIDES = {
    **{f"{side}_{key}": value for side in ("encoder", "decoder")
       for key, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 128))},
    "d_model": 64, "vocab_size": VOCABULARY, "max_position_embeddings": 64,
    "decoder_start_token_id": 2, "forced_eos_token_id": None, **_ENDS,
}  # fmt: skip
_T5 = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_decoder_layers": 2,
       "num_heads": 4, "vocab_size": VOCABULARY, "decoder_start_token_id": 0, "pad_token_id": 0,
       "eos_token_id": 1}  # fmt: skip
_TEXT = {**_WIDE, "max_position_embeddings": 64, "num_labels": 3, "pad_token_id": 0}
_IMAGES = {"image_size": EDGE, "patch_size": 8, "hidden_size": 64, "num_hidden_layers": 2,
           "num_attention_heads": 4, "intermediate_size": 128, "num_labels": 3}  # fmt: skip
_LEVELS = {
    "image_size": EDGE,
    "num_labels": 3,
    "depths": [1, 1, 2, 1],
    "hidden_sizes": [16, 32, 32, 64],
}
_SOUND = {**_WIDE, "num_labels": 3, "conv_dim": [32, 32], "conv_kernel": [10, 3],
          "conv_stride": [5, 2], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16,
          "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 32,
          "mask_time_prob": 0.0}  # fmt: skip


@dataclass(frozen=True)
class Small:
    """One architecture.

    Attributes:
        name: Its name in transformers: that of the class of its config.
        kind: One of :data:`KINDS`.
        model: The class of the model.
        settings: Of its config.
    """

    name: str
    kind: str
    model: str
    settings: dict[str, Any]

    @property
    def generates(self) -> bool:
        """Whether it answers a prompt of tokens."""
        return self.kind in ("decoder", "mixture", "recurrent") or (self.kind == "encoder-decoder")


def _all(kind: str, model: str, found: dict[str, dict[str, Any]]) -> list[Small]:
    """Return the models of a kind, whose classes are a prefix and an ending."""
    return [
        Small(name, kind, settings.pop("model", f"{name}{model}"), settings)
        for name, settings in found.items()
    ]


def _models() -> list[Small]:
    return [
        *_all("decoder", "ForCausalLM", {
            "GPT2": {**_GPT, "model": "GPT2LMHeadModel"},
            "GPTNeo": {**_WIDE, **_ENDS, "num_layers": 2, "num_heads": 4,
                       "max_position_embeddings": 64,
                       "attention_types": [[["global", "local"], 1]]},
            "GPTNeoX": {**_LLAMA},
            "GPTJ": {**_GPT, "rotary_dim": 8},
            "GPTBigCode": {**_GPT},
            "CodeGen": {**_GPT, "rotary_dim": 8},
            "OPT": {**_LLAMA, "ffn_dim": 128, "word_embed_proj_dim": 64},
            "Bloom": {**_ENDS, "vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2,
                      "n_head": 4},
            "BioGpt": {**_WIDE, **_ENDS, "max_position_embeddings": 64},
            "XGLM": {**_ENDS, "vocab_size": VOCABULARY, "d_model": 64, "ffn_dim": 128,
                     "num_layers": 2,
                     "attention_heads": 4, "max_position_embeddings": 64},
            "Mpt": {**_ENDS, "vocab_size": VOCABULARY, "d_model": 64, "n_heads": 4, "n_layers": 2,
                    "max_seq_len": 64, "expansion_ratio": 2},
            "Falcon": {**_WIDE, **_ENDS, "max_position_embeddings": 64},
            "Persimmon": _LLAMA,
            "StableLm": _LLAMA,
            "Starcoder2": _LLAMA,
            "Llama": _LLAMA,
            "Mistral": _LLAMA,
            "Qwen2": _LLAMA,
            "Qwen3": _LLAMA,
            "Gemma": _LLAMA,
            "Gemma2": {**_LLAMA, "query_pre_attn_scalar": 16},
            "Gemma3Text": {**_LLAMA, "query_pre_attn_scalar": 16, "model": "Gemma3ForCausalLM"},
            "Phi": _LLAMA,
            "Phi3": _LLAMA,
            "Olmo": _LLAMA,
            "Olmo2": _LLAMA,
            "Cohere": _LLAMA,
            "Cohere2": _LLAMA,
            "Glm": _LLAMA,
            "Glm4": _LLAMA,
            "Ernie4_5": {**_LLAMA, "model": "Ernie4_5ForCausalLM"},
            "Exaone4": _LLAMA,
            "Granite": _LLAMA,
            "Nemotron": _LLAMA,
            "Apertus": _LLAMA,
            "DiffLlama": _LLAMA,
            "ModernBertDecoder": {**_WIDE, **_ENDS, "cls_token_id": 1, "sep_token_id": 2},
        }),
        *_all("mixture", "ForCausalLM", {
            "Mixtral": _MIXTURE,
            "Phimoe": _MIXTURE,
            "Olmoe": _MIXTURE,
            "Qwen2Moe": {**_MIXTURE},
            "Qwen3Moe": _MIXTURE,
            "Qwen3Next": {**_MIXTURE, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                          "linear_num_key_heads": 4, "linear_num_value_heads": 8,
                          "layer_types": ["linear_attention", "full_attention"]},
            "DeepseekV2": {**_MIXTURE, **_LATENT},
            "DeepseekV3": {**_MIXTURE, **_LATENT},
            "Glm4Moe": _MIXTURE,
            "Ernie4_5_Moe": {**_MIXTURE, "model": "Ernie4_5_MoeForCausalLM"},
            "GptOss": _MIXTURE,
            "GraniteMoe": _MIXTURE,
            "HunYuanMoEV1": {**_MIXTURE, "moe_topk": 2},
            "JetMoe": {**_MIXTURE, "kv_channels": 16},
            "Llama4Text": {**_MIXTURE, "intermediate_size_mlp": 128, "interleave_moe_layer_step": 1,
                           "model": "Llama4ForCausalLM"},
        }),
        *_all("recurrent", "ForCausalLM", {
            "Mamba": {**_ENDS, "vocab_size": VOCABULARY, "hidden_size": 64, "state_size": 8,
                      "num_hidden_layers": 2},
            "Mamba2": {**_ENDS, **_STATES, "vocab_size": VOCABULARY, "hidden_size": 64,
                       "state_size": 8,
                       "num_hidden_layers": 2, "num_heads": 8, "head_dim": 16, "n_groups": 2},
            "FalconMamba": {**_ENDS, "vocab_size": VOCABULARY, "hidden_size": 64, "state_size": 8,
                            "num_hidden_layers": 2},
            "Rwkv": {"vocab_size": VOCABULARY, "context_length": 64, "hidden_size": 64,
                     "attention_hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
            "RecurrentGemma": {**_WIDE, **_ENDS, "num_hidden_layers": 3, "lru_width": 64,
                               "attention_window_size": 32},
            "Jamba": {**_MIXTURE, "attn_layer_period": 2, "attn_layer_offset": 1,
                      "expert_layer_period": 2, "expert_layer_offset": 1,
                      "mamba_d_state": 8},
            "Bamba": {**_LLAMA, **_STATES, "attn_layer_indices": [1]},
            "Zamba": {**_WIDE, **_ENDS, "num_key_value_heads": 4, "num_hidden_layers": 4,
                      "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
                      "mamba_d_state": 8, "mamba_dt_rank": 8, "n_mamba_heads": 2,
                      "max_position_embeddings": 64, "hidden_act": "gelu"},
            "Zamba2": {**_WIDE, **_ENDS, **_STATES, "num_hidden_layers": 3,
                       "num_key_value_heads": 4,
                       "layers_block_type": ["mamba", "mamba", "hybrid"], "adapter_rank": 4,
                       "max_position_embeddings": 64},
            "FalconH1": {**_LLAMA, **_STATES, "mamba_d_ssm": 128},
            "Lfm2": {**_LLAMA, "layer_types": ["conv", "full_attention"]},
            "GraniteMoeHybrid": {**_MIXTURE, **_STATES, "layer_types": ["mamba", "attention"],
                                 "shared_intermediate_size": 32, "mamba_n_groups": 1},
            "xLSTM": {**_ENDS, "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2,
                      "num_heads": 4, "qk_dim_factor": 1.0, "mode": "train", "chunk_size": 8},
        }),
        *_all("encoder", "ForSequenceClassification", {
            "Bert": _TEXT,
            "Roberta": _TEXT,
            "XLMRoberta": _TEXT,
            "Electra": {**_TEXT, "embedding_size": 32},
            "DistilBert": {"vocab_size": VOCABULARY, "dim": 64, "hidden_dim": 128, "n_layers": 2,
                           "n_heads": 4, "num_labels": 3, "max_position_embeddings": 64},
            "Albert": {**_TEXT, "embedding_size": 32},
            "MPNet": {**_TEXT, "bos_token_id": 1, "eos_token_id": 2},
            "Deberta": {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
            "DebertaV2": {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
            "ModernBert": {**_TEXT, **_ENDS, "cls_token_id": 1, "sep_token_id": 2},
            "MobileBert": {**_TEXT, "embedding_size": 32, "intra_bottleneck_size": 32},
            "ConvBert": {**_TEXT, "embedding_size": 32, "head_ratio": 2},
            "RoFormer": {**_TEXT, "embedding_size": 32},
            "XLNet": {"vocab_size": VOCABULARY, "d_model": 64, "n_layer": 2, "n_head": 4,
                      "d_inner": 128, "num_labels": 3, "pad_token_id": 0},
        }),
        *_all("encoder-decoder", "ForConditionalGeneration", {
            "T5": _T5,
            "MT5": _T5,
            "LongT5": _T5,
            "Bart": _SIDES,
            "MBart": _SIDES,
            "Pegasus": _SIDES,
            "Marian": {**_SIDES, "model": "MarianMTModel"},
            "M2M100": _SIDES,
            "LED": {**_SIDES, "attention_window": 4, "max_encoder_position_embeddings": 64,
                    "max_decoder_position_embeddings": 64},
        }),
        *_all("images", "ForImageClassification", {
            "ViT": _IMAGES,
            "DeiT": _IMAGES,
            "Beit": {**_IMAGES, "use_relative_position_bias": True},
            "Swin": {"image_size": EDGE, "patch_size": 4, "embed_dim": 16, "depths": [1, 1],
                     "num_heads": [2, 4], "window_size": 4, "num_labels": 3},
            "Swinv2": {"image_size": EDGE, "patch_size": 4, "embed_dim": 16, "depths": [1, 1],
                       "num_heads": [2, 4], "window_size": 4, "num_labels": 3},
            "ConvNext": _LEVELS,
            "ConvNextV2": _LEVELS,
            "Dinov2": _IMAGES,
            "Siglip": {"vision_config": _IMAGES, "num_labels": 3},
            "CLIP": {"vision_config": _IMAGES, "num_labels": 3},
            "ResNet": {**_LEVELS, "embedding_size": 16, "layer_type": "basic"},
        }),
        *_all("sound", "ForSequenceClassification", {
            "Whisper": {**_SIDES, "num_mel_bins": 8, "max_source_positions": 20,
                        "max_target_positions": 32, "suppress_tokens": None,
                        "begin_suppress_tokens": None,
                        "model": "WhisperForConditionalGeneration"},
            "Wav2Vec2": _SOUND,
            "Hubert": _SOUND,
        }),
        *_all("pairs", "Model", {
            "CLIP ": {"model": "CLIPModel", "projection_dim": 32, "vision_config": _IMAGES,
                      "text_config": {**_TEXT, **_ENDS}},
        }),
    ]  # fmt: skip


MODELS = {small.name: small for small in _models()}
"""Every architecture, by its name."""


def build(small: Small) -> Any:
    """Return the model, always with the same weights."""
    config = getattr(hf, f"{small.name.strip()}Config")(**small.settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = getattr(hf, small.model)(config)
        for parameter in model.parameters():  # trained norms and biases are not ones and zeros
            if parameter.dim() == 1:
                parameter.data += torch.randn_like(parameter) * 0.1
    return model.eval()


def batch_of(small: Small, seed: int = 1) -> dict[str, Tensor]:
    """Return a batch of four, with what is to be learned."""
    drawn = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (4, LENGTH), generator=drawn)
    pixels = torch.randn(4, 3, EDGE, EDGE, generator=drawn)
    classes = torch.tensor([0, 1, 2, 0])
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "encoder": lambda: {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": classes,
        },
        "images": lambda: {"pixel_values": pixels, "labels": classes},
        "pairs": lambda: {"input_ids": ids, "pixel_values": pixels, "return_loss": True},
        "sound": lambda: {"input_values": torch.randn(4, 800, generator=drawn), "labels": classes},
    }
    if small.name == "Whisper":
        return {"input_features": torch.randn(4, 8, 40, generator=drawn), "labels": ids}
    if small.kind in makers:
        return makers[small.kind]()
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    if small.name == "LED":  # whose first token sees all others, as its authors advise
        found["global_attention_mask"] = torch.zeros_like(ids).index_fill(1, torch.tensor(0), 1)
    return found
