"""Small random pipelines of diffusers' classes, in their layout on disk: what the systems' adapter is tested on.

Wan's is `small_pipeline`. Shapes and options are those that each class insists on, as small as it allows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
)
from small_pipeline import write_pipeline
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WIDTH = 16


def write_cogvideox(folder: Path) -> None:
    """8 x 8 x 4 px a latent position, patches of 2 x 2."""
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=4,
        sample_height=4,
        sample_frames=5,
        max_text_seq_length=226,
        use_rotary_positional_embeddings=True,
    )
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2, scaling_factor=1.0
    )
    scheduler = CogVideoXDDIMScheduler(prediction_type="v_prediction")
    CogVideoXPipeline(_letters(), _t5(), vae, transformer, scheduler).save_pretrained(folder)


def write_ltx(folder: Path) -> None:
    """16 x 16 x 4 px a latent position."""
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=WIDTH,
    )
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
    )
    LTXPipeline(_shifting(), vae, _t5(), _letters(), transformer).save_pretrained(folder)


def write_mochi(folder: Path) -> None:
    """8 x 8 x 6 px a latent position, patches of 2 x 2."""
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        max_sequence_length=256,
    )
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    MochiPipeline(scheduler, vae, _t5(), _letters(), transformer).save_pretrained(folder)


def write_hunyuan(folder: Path) -> None:
    """8 x 8 x 4 px a latent position, patches of 2 x 2."""
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    llama = LlamaModel(
        LlamaConfig(vocab_size=300, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
    )
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=300,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            projection_dim=8,
        )
    )
    letters = _letters(), _letters()
    HunyuanVideoPipeline(
        llama.eval(), letters[0], transformer, vae, FlowMatchEulerDiscreteScheduler(shift=7.0), clip.eval(), letters[1]
    ).save_pretrained(folder)


def write_small(name: str, folder: Path) -> Path:
    """The small pipeline of a class of diffusers, always the same one."""
    writers: dict[str, Callable[[Path], Any]] = {
        "WanPipeline": write_pipeline,
        "CogVideoXPipeline": write_cogvideox,
        "LTXPipeline": write_ltx,
        "MochiPipeline": write_mochi,
        "HunyuanVideoPipeline": write_hunyuan,
    }
    torch.manual_seed(0)
    writers[name](folder)
    return folder


def _t5() -> T5EncoderModel:
    config = T5Config(vocab_size=300, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def _shifting() -> FlowMatchEulerDiscreteScheduler:
    """LTX-Video's: its shift depends on how many tokens there are."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1
    )


def _letters() -> PreTrainedTokenizerFast:
    """A token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{letter: 3 + i for i, letter in enumerate(alphabet)}}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=256
    )
