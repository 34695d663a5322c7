"""Tiny random models of diffusers, and inputs for them."""

import diffusers as df
import torch


def unet(**options):
    return df.UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **options,
    ).eval()


def unet_text(**options):
    defaults = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "cross_attention_dim": 24,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return df.UNet2DConditionModel(**(defaults | options)).eval()


def unet_added():
    return unet_text(
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    )


def dit():
    return df.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        norm_num_groups=4,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    ).eval()


def vae():
    return df.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
        shift_factor=0.1,
    ).eval()


def sd3(**options):
    return df.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
        **options,
    ).eval()


def flux():
    return df.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    ).eval()


def pixart():
    return df.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=1,
        cross_attention_dim=16,
        out_channels=8,
        sample_size=8,
        patch_size=2,
        caption_channels=12,
        norm_num_groups=1,
        use_additional_conditions=False,
    ).eval()


def flux_inputs():
    return {
        "hidden_states": torch.randn(2, 16, 4),
        "encoder_hidden_states": torch.randn(2, 5, 16),
        "pooled_projections": torch.randn(2, 16),
        "timestep": torch.tensor([0.5, 0.2]),
        "img_ids": torch.randn(16, 3),
        "txt_ids": torch.zeros(5, 3),
    }


padding = torch.tensor([[1.0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
MODELS = {
    "unet": (unet, lambda: {"sample": torch.randn(2, 3, 16, 16), "timestep": 7}),
    "unet_text": (
        unet_text,
        lambda: {
            "sample": torch.randn(2, 4, 8, 8),
            "timestep": 7,
            "encoder_hidden_states": torch.randn(2, 6, 24),
            "encoder_attention_mask": padding,
        },
    ),
    "unet_added": (
        unet_added,
        lambda: {
            "sample": torch.randn(2, 4, 8, 8),
            "timestep": 7,
            "encoder_hidden_states": torch.randn(2, 6, 24),
            "encoder_attention_mask": padding,
        },
    ),
    "dit": (
        dit,
        lambda: {
            "hidden_states": torch.randn(2, 4, 8, 8),
            "timestep": torch.tensor([7, 9]),
            "class_labels": torch.tensor([1, 2]),
        },
    ),
    "vae": (vae, lambda: {"sample": torch.randn(2, 3, 16, 16)}),
    "sd3": (
        sd3,
        lambda: {
            "hidden_states": torch.randn(2, 4, 8, 8),
            "encoder_hidden_states": torch.randn(2, 5, 16),
            "pooled_projections": torch.randn(2, 16),
            "timestep": torch.tensor([7, 9]),
        },
    ),
    "sd3_qk_norm_dual": (
        lambda: sd3(qk_norm="rms_norm", dual_attention_layers=(0,)),
        lambda: {
            "hidden_states": torch.randn(2, 4, 8, 8),
            "encoder_hidden_states": torch.randn(2, 5, 16),
            "pooled_projections": torch.randn(2, 16),
            "timestep": torch.tensor([7, 9]),
        },
    ),
    "flux": (flux, flux_inputs),
    "pixart": (
        pixart,
        lambda: {
            "hidden_states": torch.randn(2, 4, 8, 8),
            "encoder_hidden_states": torch.randn(2, 6, 12),
            "timestep": torch.tensor([7, 9]),
            "encoder_attention_mask": padding,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
}
