"""Small random transformers models, one per architecture; nothing is downloaded.

Every entry is data: model class, configuration class, settings, an input maker and what is unusual about it.
Models have two layers or stages, sizes between 32 and 128, a vocabulary of 128 and inputs of batch 2.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

BATCH, LENGTH, TARGET_LENGTH, VOCABULARY, IMAGE, SAMPLES, FRAMES, MELS = 2, 12, 6, 128, 32, 1600, 32, 16
SPECIAL_TOKENS = 3  # padding, beginning and end take ids 0 to 2; inputs never contain them


@dataclass(frozen=True)
class Architecture:
    """How to build one model, and what was measured about it on torch 2.13 and transformers 5.23.

    unusual: in words, what a rewrite of Linear layers meets here beyond plain Linear layers; empty for none.
    graph_breaks: why Dynamo captures the forward as several graphs; empty when it is one graph.
    """

    model: str
    config: str
    settings: Mapping[str, object]
    inputs: Callable[[], dict[str, torch.Tensor]]
    unusual: str = ""
    graph_breaks: str = ""


def build(name: str) -> tuple[torch.nn.Module, tuple, dict[str, torch.Tensor]]:
    """Return (model, args, kwargs): float32, eval mode, no gradients, the same weights and inputs on each call."""
    import transformers

    entry = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = getattr(transformers, entry.config)(**entry.settings)
    model = getattr(transformers, entry.model)(config).float().eval().requires_grad_(False)
    torch.manual_seed(0)
    return model, (), entry.inputs()


def outputs(result: object) -> list[torch.Tensor]:
    """Return the floating-point tensors of a model output, depth first; mappings in their own order."""
    if isinstance(result, torch.Tensor):
        return [result] if result.is_floating_point() else []
    if isinstance(result, Mapping):
        result = result.values()
    elif not isinstance(result, (tuple, list)):
        return []
    return [tensor for item in result for tensor in outputs(item)]


def tokens(length: int = LENGTH) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(SPECIAL_TOKENS, VOCABULARY, (BATCH, length))}


def masked_tokens() -> dict[str, torch.Tensor]:
    """Tokens whose second row ends in two padded positions."""
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[1, -2:] = 0
    return tokens() | {"attention_mask": mask}


def decoder_tokens() -> dict[str, torch.Tensor]:
    return {"decoder_input_ids": tokens(TARGET_LENGTH)["input_ids"]}


def pixels() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(BATCH, 3, IMAGE, IMAGE)}


def image_tokens() -> dict[str, torch.Tensor]:
    """Text in which each of the 16 image patches has its placeholder token, the last id of the vocabulary."""
    text = torch.randint(SPECIAL_TOKENS, VOCABULARY - 1, (BATCH, LENGTH))
    placeholders = torch.full((BATCH, 16), VOCABULARY - 1)
    return {"input_ids": torch.cat([text[:, :2], placeholders, text[:, 2:]], dim=1)}


def waveform() -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(BATCH, SAMPLES)}


def features() -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(BATCH, FRAMES, MELS)}


def mels() -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(BATCH, MELS, FRAMES)}


def joined(*makers: Callable[[], dict[str, torch.Tensor]]) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {name: tensor for maker in makers for name, tensor in maker().items()}


token_pairs = joined(tokens, decoder_tokens)
tokens_and_pixels = joined(tokens, pixels)

# The default weights, of deviation 0.02, are made for wide layers; 0.125 = 1/sqrt(64) lets every layer be felt here.
UNIT_GAIN = dict(initializer_range=0.125, init_std=0.125)
SPECIAL = UNIT_GAIN | dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
CORE = UNIT_GAIN | dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
TEXT = CORE | SPECIAL | dict(vocab_size=VOCABULARY, max_position_embeddings=64, use_cache=False)
ENCODER = TEXT | dict(type_vocab_size=2)
GROUPED = TEXT | dict(num_key_value_heads=2, head_dim=16)
GPT = SPECIAL | dict(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=64, use_cache=False)
MIXTURE = GROUPED | dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
BART = SPECIAL | dict(
    vocab_size=VOCABULARY,
    d_model=64,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=128,
    decoder_ffn_dim=128,
    max_position_embeddings=64,
    use_cache=False,
    decoder_start_token_id=1,
)
T5 = dict(vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, use_cache=False)
IMAGES = CORE | dict(image_size=IMAGE, patch_size=8)
STAGES = UNIT_GAIN | dict(depths=[1, 1], hidden_sizes=[32, 64])
WINDOWS = UNIT_GAIN | dict(image_size=IMAGE, patch_size=4, embed_dim=32, depths=[1, 1], num_heads=[2, 4], window_size=4)
AUDIO = CORE | dict(
    vocab_size=32,
    conv_dim=[32, 32],
    conv_kernel=[10, 3],
    conv_stride=[5, 2],
    num_feat_extract_layers=2,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    apply_spec_augment=False,
)
CLIP_VISION = IMAGES | dict(projection_dim=32)
STATE = SPECIAL | dict(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, state_size=8, use_cache=False)

REUSED = "one compiled graph serves several layers or experts: its weights are inputs that change between calls"
ROUTED = "experts are one 3-D parameter run by grouped mm; the router is F.linear with a parameter of its own"
SCANNED = "dt_proj is a matmul with its weight; compiled code uses an associative scan, equal to eager to 1e-5 only"
UNCALLED = "six Linear layers for global attention are never called"
HOOKED = "the first call of the model, if compiled, installs hooks for hidden states under a lock"
GLOBAL = "reads with Tensor.item() whether any token has global attention"

DECODERS = {
    name: Architecture(f"{prefix}ForCausalLM", f"{prefix}Config", GROUPED, tokens)
    for name, prefix in dict(
        llama="Llama",
        qwen2="Qwen2",
        qwen3="Qwen3",
        gemma="Gemma",
        starcoder2="Starcoder2",
        olmo="Olmo",
        olmo2="Olmo2",
        cohere="Cohere",
        granite="Granite",
        glm="Glm",
        smollm3="SmolLM3",
    ).items()
} | {
    "gpt2": Architecture(
        "GPT2LMHeadModel", "GPT2Config", GPT, tokens, unusual="projections are Conv1D: addmm with a weight of [in, out]"
    ),
    "gpt_neo": Architecture(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        TEXT | dict(num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8),
        tokens,
    ),
    "gpt_neox": Architecture("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT, tokens),
    "gptj": Architecture("GPTJForCausalLM", "GPTJConfig", GPT | dict(rotary_dim=8), tokens),
    "codegen": Architecture("CodeGenForCausalLM", "CodeGenConfig", GPT | dict(rotary_dim=8), tokens),
    "opt": Architecture("OPTForCausalLM", "OPTConfig", TEXT | dict(ffn_dim=128, word_embed_proj_dim=64), tokens),
    "bloom": Architecture(
        "BloomForCausalLM",
        "BloomConfig",
        SPECIAL | dict(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4, use_cache=False),
        tokens,
    ),
    "mistral": Architecture("MistralForCausalLM", "MistralConfig", GROUPED | dict(sliding_window=8), tokens),
    "gemma2": Architecture("Gemma2ForCausalLM", "Gemma2Config", GROUPED | dict(sliding_window=8), tokens),
    "gemma3_text": Architecture("Gemma3ForCausalLM", "Gemma3TextConfig", GROUPED | dict(sliding_window=8), tokens),
    "phi": Architecture("PhiForCausalLM", "PhiConfig", TEXT, tokens),
    "phi3": Architecture("Phi3ForCausalLM", "Phi3Config", TEXT | dict(num_key_value_heads=2), tokens),
    "falcon": Architecture(
        "FalconForCausalLM",
        "FalconConfig",
        TEXT,
        tokens,
        unusual="all but the head multiply by the transposed weight with matmul",
    ),
    "mpt": Architecture(
        "MptForCausalLM",
        "MptConfig",
        SPECIAL | dict(vocab_size=VOCABULARY, d_model=64, n_heads=4, n_layers=2, max_seq_len=64),
        tokens,
    ),
    "stablelm": Architecture("StableLmForCausalLM", "StableLmConfig", TEXT | dict(num_key_value_heads=2), tokens),
    "xglm": Architecture(
        "XGLMForCausalLM", "XGLMConfig", TEXT | dict(d_model=64, ffn_dim=128, num_layers=2, attention_heads=4), tokens
    ),
    "biogpt": Architecture("BioGptForCausalLM", "BioGptConfig", TEXT, tokens),
}

ENCODERS = {
    "bert": Architecture("BertForMaskedLM", "BertConfig", ENCODER, masked_tokens),
    "roberta": Architecture("RobertaForMaskedLM", "RobertaConfig", ENCODER, masked_tokens),
    "xlm_roberta": Architecture("XLMRobertaForMaskedLM", "XLMRobertaConfig", ENCODER, masked_tokens),
    "camembert": Architecture("CamembertForMaskedLM", "CamembertConfig", ENCODER, masked_tokens),
    "distilbert": Architecture(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        SPECIAL
        | dict(vocab_size=VOCABULARY, dim=64, hidden_dim=128, n_layers=2, n_heads=4, max_position_embeddings=64),
        masked_tokens,
    ),
    "albert": Architecture(
        "AlbertForMaskedLM",
        "AlbertConfig",
        ENCODER | dict(embedding_size=32),
        masked_tokens,
        unusual="both layers share one set of weights",
    ),
    "electra": Architecture("ElectraForPreTraining", "ElectraConfig", ENCODER | dict(embedding_size=32), masked_tokens),
    "deberta": Architecture(
        "DebertaModel",
        "DebertaConfig",
        TEXT | dict(relative_attention=True, pos_att_type=["c2p", "p2c"]),
        masked_tokens,
        unusual=REUSED,
        graph_breaks="slices the relative embeddings by a tensor, in the loop over layers",
    ),
    "deberta_v2": Architecture(
        "DebertaV2Model",
        "DebertaV2Config",
        TEXT | dict(relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8),
        masked_tokens,
    ),
    "mpnet": Architecture("MPNetForMaskedLM", "MPNetConfig", TEXT, masked_tokens),
    "modernbert": Architecture(
        "ModernBertForMaskedLM", "ModernBertConfig", TEXT | dict(local_attention=8), masked_tokens
    ),
    "squeezebert": Architecture(
        "SqueezeBertModel",
        "SqueezeBertConfig",
        ENCODER | dict(embedding_size=64),
        masked_tokens,
        unusual="all but the pooler are conv1d of kernel 1, most of them grouped",
    ),
    "convbert": Architecture("ConvBertModel", "ConvBertConfig", ENCODER | dict(embedding_size=64), masked_tokens),
    "fnet": Architecture("FNetModel", "FNetConfig", ENCODER, tokens),
    "longformer": Architecture(
        "LongformerModel",
        "LongformerConfig",
        TEXT | dict(attention_window=4),
        masked_tokens,
        unusual=UNCALLED,
        graph_breaks=GLOBAL,
    ),
    "xlnet": Architecture(
        "XLNetModel",
        "XLNetConfig",
        SPECIAL | dict(vocab_size=VOCABULARY, d_model=64, n_layer=2, n_head=4, d_inner=128, use_mems_eval=False),
        tokens,
        unusual="attention projections are einsum with a parameter",
    ),
    "esm": Architecture(
        "EsmModel", "EsmConfig", TEXT | dict(mask_token_id=2, position_embedding_type="rotary"), masked_tokens
    ),
}

ENCODER_DECODERS = {
    "t5": Architecture("T5ForConditionalGeneration", "T5Config", T5, token_pairs),
    "longt5": Architecture(
        "LongT5ForConditionalGeneration",
        "LongT5Config",
        T5 | dict(local_radius=4),
        token_pairs,
        graph_breaks="without an attention mask the encoder and decoder frames fail to trace",
    ),
    "bart": Architecture("BartForConditionalGeneration", "BartConfig", BART, token_pairs),
    "mbart": Architecture("MBartForConditionalGeneration", "MBartConfig", BART, token_pairs),
    "pegasus": Architecture("PegasusForConditionalGeneration", "PegasusConfig", BART, token_pairs),
    "marian": Architecture("MarianMTModel", "MarianConfig", BART, token_pairs),
    "m2m_100": Architecture("M2M100ForConditionalGeneration", "M2M100Config", BART, token_pairs),
    "led": Architecture(
        "LEDForConditionalGeneration",
        "LEDConfig",
        BART | dict(attention_window=4, max_encoder_position_embeddings=64, max_decoder_position_embeddings=64),
        token_pairs,
        unusual=UNCALLED,
        graph_breaks=GLOBAL,
    ),
}

VISION = {
    "vit": Architecture("ViTModel", "ViTConfig", IMAGES, pixels),
    "deit": Architecture("DeiTModel", "DeiTConfig", IMAGES, pixels),
    "beit": Architecture("BeitModel", "BeitConfig", IMAGES | dict(use_relative_position_bias=True), pixels),
    "swin": Architecture("SwinModel", "SwinConfig", WINDOWS, pixels),
    "swinv2": Architecture("Swinv2Model", "Swinv2Config", WINDOWS, pixels),
    "dinov2": Architecture("Dinov2Model", "Dinov2Config", IMAGES, pixels),
    "convnextv2": Architecture("ConvNextV2Model", "ConvNextV2Config", STAGES | dict(num_stages=2), pixels),
    "segformer": Architecture(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        STAGES
        | dict(
            num_encoder_blocks=2,
            sr_ratios=[2, 1],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=32,
        ),
        pixels,
        unusual="Linear layers alternate with conv2d",
        graph_breaks=HOOKED,
    ),
    "clip_vision": Architecture("CLIPVisionModel", "CLIPVisionConfig", CLIP_VISION, pixels),
    "siglip_vision": Architecture("SiglipVisionModel", "SiglipVisionConfig", IMAGES, pixels),
    "yolos": Architecture(
        "YolosForObjectDetection",
        "YolosConfig",
        IMAGES | dict(image_size=[IMAGE, IMAGE], num_detection_tokens=4),
        pixels,
    ),
    "poolformer": Architecture(
        "PoolFormerModel",
        "PoolFormerConfig",
        STAGES | dict(num_encoder_blocks=2, patch_sizes=[7, 3], strides=[4, 2], padding=[2, 1]),
        pixels,
        unusual="no Linear at all; its channel mixing is conv2d of kernel 1",
    ),
}

SPEECH = {
    "whisper": Architecture(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        BART | dict(num_mel_bins=MELS, max_source_positions=FRAMES // 2, max_target_positions=32),
        joined(mels, decoder_tokens),
    ),
    "wav2vec2": Architecture("Wav2Vec2ForCTC", "Wav2Vec2Config", AUDIO, waveform),
    "hubert": Architecture("HubertForCTC", "HubertConfig", AUDIO, waveform),
    "wavlm": Architecture(
        "WavLMForCTC",
        "WavLMConfig",
        AUDIO,
        waveform,
        unusual="attention projections are weights passed to F.multi_head_attention_forward",
    ),
    "wav2vec2_conformer": Architecture(
        "Wav2Vec2ConformerForCTC",
        "Wav2Vec2ConformerConfig",
        AUDIO | dict(conv_depthwise_kernel_size=7),
        waveform,
        unusual="pointwise projections are conv1d of kernel 1",
    ),
    "speech_to_text": Architecture(
        "Speech2TextForConditionalGeneration",
        "Speech2TextConfig",
        BART
        | dict(
            input_feat_per_channel=MELS,
            input_channels=1,
            conv_channels=32,
            max_source_positions=64,
            max_target_positions=32,
        ),
        joined(features, decoder_tokens),
    ),
    "moonshine": Architecture(
        "MoonshineForConditionalGeneration",
        "MoonshineConfig",
        SPECIAL
        | dict(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            encoder_num_hidden_layers=2,
            decoder_num_hidden_layers=2,
            encoder_num_attention_heads=4,
            decoder_num_attention_heads=4,
            use_cache=False,
            decoder_start_token_id=1,
        ),
        joined(waveform, decoder_tokens),
    ),
}

MULTIMODAL = {
    "clip": Architecture(
        "CLIPModel",
        "CLIPConfig",
        dict(text_config=TEXT | dict(projection_dim=32), vision_config=CLIP_VISION, projection_dim=32),
        tokens_and_pixels,
    ),
    "siglip": Architecture(
        "SiglipModel", "SiglipConfig", dict(text_config=TEXT, vision_config=IMAGES), tokens_and_pixels
    ),
    "blip": Architecture(
        "BlipForConditionalGeneration",
        "BlipConfig",
        dict(text_config=TEXT | dict(sep_token_id=2, encoder_hidden_size=64), vision_config=IMAGES, projection_dim=32),
        tokens_and_pixels,
    ),
    "vilt": Architecture(
        "ViltModel",
        "ViltConfig",
        ENCODER | IMAGES,
        tokens_and_pixels,
        unusual="draws the order of patches at random: seed before each call",
        graph_breaks="interpolation sizes, nonzero and unique depend on data",
    ),
    "llava": Architecture(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        dict(
            text_config=GROUPED | dict(model_type="llama"),
            vision_config=CLIP_VISION | dict(model_type="clip_vision_model"),
            image_token_index=VOCABULARY - 1,
            image_seq_length=16,
        ),
        joined(image_tokens, pixels),
        unusual="the last vision layer does not reach the output",
        graph_breaks=f"counts the image tokens with Tensor.item(); {HOOKED}",
    ),
}

MIXTURES = {
    "mixtral": Architecture(
        "MixtralForCausalLM", "MixtralConfig", GROUPED | dict(num_local_experts=4), tokens, unusual=ROUTED
    ),
    "qwen2_moe": Architecture(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        MIXTURE | dict(shared_expert_intermediate_size=64),
        tokens,
        unusual=ROUTED,
    ),
    "olmoe": Architecture("OlmoeForCausalLM", "OlmoeConfig", MIXTURE, tokens, unusual=ROUTED),
    "gpt_oss": Architecture(
        "GptOssForCausalLM",
        "GptOssConfig",
        GROUPED | dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
        tokens,
        unusual=ROUTED,
    ),
    "deepseek_v3": Architecture(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        TEXT
        | dict(
            moe_intermediate_size=64,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            kv_lora_rank=32,
            q_lora_rank=32,
            qk_rope_head_dim=16,
            qk_nope_head_dim=16,
            v_head_dim=16,
            first_k_dense_replace=1,
        ),
        tokens,
        unusual=ROUTED,
    ),
    "qwen3_next": Architecture(
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        MIXTURE
        | dict(
            shared_expert_intermediate_size=64,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            layer_types=["linear_attention", "full_attention"],
        ),
        tokens,
        unusual=ROUTED,
    ),
    "switch_transformers": Architecture(
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        T5 | dict(num_decoder_layers=2, num_experts=4, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1),
        token_pairs,
        unusual=REUSED,
        graph_breaks="loops over the experts that nonzero() says were hit",
    ),
    "jamba": Architecture(
        "JambaForCausalLM",
        "JambaConfig",
        GROUPED
        | dict(num_experts=2, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False, mamba_d_state=8),
        tokens,
        unusual=f"{SCANNED}; {ROUTED}",
    ),
}

STATE_SPACES = {
    "mamba": Architecture("MambaForCausalLM", "MambaConfig", STATE, tokens, unusual=SCANNED),
    "mamba2": Architecture(
        "Mamba2ForCausalLM", "Mamba2Config", STATE | dict(num_heads=8, head_dim=16, n_groups=2, chunk_size=8), tokens
    ),
    "falcon_mamba": Architecture("FalconMambaForCausalLM", "FalconMambaConfig", STATE, tokens, unusual=SCANNED),
    "rwkv": Architecture(
        "RwkvForCausalLM",
        "RwkvConfig",
        SPECIAL | dict(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, context_length=64, use_cache=False),
        tokens,
    ),
}

ARCHITECTURES = DECODERS | ENCODERS | ENCODER_DECODERS | VISION | SPEECH | MULTIMODAL | MIXTURES | STATE_SPACES
