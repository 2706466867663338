"""The ADM UNet of guided-diffusion and its encoder, split at the h-space.

Same constructor arguments, parameter names, shapes and outputs as ``UNetModel`` and ``EncoderUNetModel`` of
openai/guided-diffusion (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis"), so its checkpoints
load as they are. Two things differ on purpose:

- ``forward`` is ``decode(*encode(x, t, y))``: the shifted generation step runs the encoder once and the decoder twice.
- No checkpoint call inside, unless :func:`checkpoint_blocks` asks for it: a frozen model can be differentiated, and
  "vanilla" memory is what it says.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

GROUPS = 32  # of every group norm, as in guided-diffusion


class GroupNorm32(nn.GroupNorm):
    """Group norm with 32 groups that accumulates at least in float32, and returns its input's dtype."""

    def __init__(self, channels: int) -> None:
        if channels % GROUPS:
            raise ValueError(
                f"group norm has {GROUPS} groups, so channel counts must be multiples of {GROUPS}, got {channels}: "
                f"make model_channels * channel_mult a multiple of {GROUPS}"
            )
        super().__init__(GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape."""
        # Float32 parameters with bfloat16 input is a kernel of its own on the CPU, several times faster than casting
        # the activations up and down; CUDA has none, but there autocast makes the input float32.
        return super().forward(x).to(x.dtype)


def timestep_embedding(t: Tensor, channels: int, max_period: float = 10_000) -> Tensor:
    """Sinusoidal embedding of integer timesteps: [B] -> [B, channels], cosines first, float32."""
    half = channels // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * frequencies[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, channels % 2))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution if asked for."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W]."""
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        out: Tensor = self.conv(x)
        return out


class Downsample(nn.Module):
    """Halving by a strided 3x3 convolution, or by average pooling."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]."""
        out: Tensor = self.op(x)
        return out


class ResBlock(nn.Module):
    """Residual block conditioned on the time embedding; ``resample`` is "up", "down" or None."""

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int,
        use_scale_shift_norm: bool,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(
            GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.resample: nn.Module = {
            "up": Upsample(channels, use_conv=False),
            "down": Downsample(channels, use_conv=False),
            None: nn.Identity(),
        }[resample]
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels if use_scale_shift_norm else out_channels)
        )
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if out_channels == channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, out_channels, H', W'], given the embedding [B, emb_channels]."""
        norm, activation, conv = self.in_layers
        h = conv(self.resample(activation(norm(x))))
        emb_out = self.emb_layers(emb).to(h.dtype)[..., None, None]
        out_norm, out_rest = self.out_layers[0], self.out_layers[1:]
        if self.use_scale_shift_norm:
            scale, shift = emb_out.chunk(2, dim=1)
            h = out_rest(out_norm(h) * (1 + scale) + shift)
        else:
            h = out_rest(out_norm(h + emb_out))
        out: Tensor = self.skip_connection(self.resample(x)) + h
        return out


class AttentionBlock(nn.Module):
    """Self-attention over positions, in either of guided-diffusion's two qkv channel orders.

    The order changes the output but no name or shape, so a checkpoint cannot tell which one it needs.
    """

    def __init__(self, channels: int, num_heads: int, num_head_channels: int, use_new_attention_order: bool) -> None:
        super().__init__()
        if num_head_channels != -1:
            num_heads = channels // num_head_channels
        if num_heads < 1 or channels % num_heads or (num_head_channels != -1 and channels % num_head_channels):
            raise ValueError(
                f"{channels} channels cannot be split into heads of {num_head_channels} channels or {num_heads} heads: "
                "choose num_heads or num_head_channels that divide them"
            )
        self.num_heads = num_heads
        self.use_new_attention_order = use_new_attention_order
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        batch, channels, *spatial = x.shape
        flat = x.reshape(batch, channels, -1)
        qkv = self.qkv(self.norm(flat))
        if self.use_new_attention_order:  # [3, heads, channels per head]
            q, k, v = qkv.reshape(batch, 3, self.num_heads, -1, flat.shape[-1]).unbind(1)
        else:  # [heads, 3, channels per head]
            q, k, v = qkv.reshape(batch, self.num_heads, 3, -1, flat.shape[-1]).unbind(2)
        q, k, v = q.mT, k.mT, v.mT
        if x.is_cuda:  # its fused kernels need the channels last in memory; on the CPU small ones would be slower
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        h = F.scaled_dot_product_attention(q, k, v).mT.reshape(batch, channels, -1)
        out: Tensor = flat + self.proj_out(h)
        return out.reshape(batch, channels, *spatial)


class TimestepEmbedSequential(nn.Sequential):
    """A sequence whose residual blocks also receive the time embedding."""

    recomputed = False
    """Whether the backward pass recomputes what is inside."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        """The output of the last layer."""
        if self.recomputed and torch.is_grad_enabled():
            out: Tensor = checkpoint(self._layers, x, emb, use_reentrant=False, preserve_rng_state=self.training)
            return out
        return self._layers(x, emb)

    def _layers(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


def checkpoint_blocks(network: nn.Module, recomputed: bool = True) -> None:
    """Makes the backward pass keep only the ends of each block of a network, and recompute the inside, or not."""
    for module in network.modules():
        if isinstance(module, TimestepEmbedSequential):
            module.recomputed = recomputed


class EncoderHalf(nn.Module):
    """Time embedding, input blocks and middle block: what both ADM networks share."""

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        super().__init__()
        if dims != 2:
            raise ValueError(f"dims={dims}: only images are supported, use dims=2")
        if use_checkpoint:
            raise ValueError(
                "use_checkpoint=True: leave it False, and call checkpoint_blocks on the network or choose a strategy "
                "of hbench.backpropagate instead (the outputs are the same)"
            )
        if use_fp16:
            raise ValueError("use_fp16=True: leave it False and run the model under torch.autocast instead")
        if image_size % 2 ** (len(channel_mult) - 1):
            raise ValueError(
                f"image_size {image_size} cannot be halved {len(channel_mult) - 1} times: "
                "use a multiple of 2 ** (len(channel_mult) - 1)"
            )
        self.image_size = image_size
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.model_channels = model_channels
        self.num_classes = num_classes
        self.emb_channels = 4 * model_channels
        self.block_channels: list[int] = []  # of each input block's output, for the decoder

        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, self.emb_channels),
            nn.SiLU(),
            nn.Linear(self.emb_channels, self.emb_channels),
        )
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, self.emb_channels)

        def res_block(channels: int, out_channels: int, resample: str | None = None) -> ResBlock:
            return ResBlock(channels, self.emb_channels, dropout, out_channels, use_scale_shift_norm, resample)

        def attention(channels: int) -> AttentionBlock:
            return AttentionBlock(channels, num_heads, num_head_channels, use_new_attention_order)

        channels = int(channel_mult[0] * model_channels)
        blocks = [TimestepEmbedSequential(nn.Conv2d(in_channels, channels, 3, padding=1))]
        self.block_channels.append(channels)
        downsampling = 1
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [res_block(channels, int(mult * model_channels))]
                channels = int(mult * model_channels)
                if downsampling in attention_resolutions:
                    layers.append(attention(channels))
                blocks.append(TimestepEmbedSequential(*layers))
                self.block_channels.append(channels)
            if level < len(channel_mult) - 1:
                down = res_block(channels, channels, "down") if resblock_updown else Downsample(channels, conv_resample)
                blocks.append(TimestepEmbedSequential(down))
                self.block_channels.append(channels)
                downsampling *= 2
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = TimestepEmbedSequential(
            res_block(channels, channels), attention(channels), res_block(channels, channels)
        )
        self.h_shape = (channels, image_size // downsampling, image_size // downsampling)

    def encode(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Tensor], Tensor]:
        """h_t, the skip connections and the embedding of time (and class).

        Args:
            x: noisy images, [B, in_channels, H, W].
            t: integer timesteps in 0..999, [B].
            y: class labels, [B]; required for, and only for, class-conditional models.

        Returns:
            ``h`` [B, *h_shape], the output of the middle block; ``skips``, outputs of the input blocks, first to
            last; ``emb`` [B, emb_channels].

        Raises:
            ValueError: x does not fit the model, or y is missing or superfluous.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must be [B, {self.in_channels}, H, W], got {list(x.shape)}")
        if (y is None) != (self.num_classes is None):
            raise ValueError("pass y if and only if the model is class-conditional")
        emb = self.time_embed(timestep_embedding(t, self.model_channels).to(next(self.time_embed.parameters())))
        if y is not None:
            emb = emb + self.label_emb(y)
        h = x
        skips = []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        return self.middle_block(h, emb), skips, emb


class UNetModel(EncoderHalf):
    """ADM's UNet: predicts eps (with learned sigma, 2C channels: eps first, then the variance, which hbench ignores).

    The arguments are guided-diffusion's. ``attention_resolutions`` are downsampling factors (2 = at half the size), as
    there. Raises ValueError for sizes that cannot be built.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        super().__init__(
            image_size,
            in_channels,
            model_channels,
            out_channels,
            num_res_blocks,
            attention_resolutions,
            dropout,
            channel_mult,
            conv_resample,
            dims,
            num_classes,
            use_checkpoint,
            use_fp16,
            num_heads,
            num_head_channels,
            use_scale_shift_norm,
            resblock_updown,
            use_new_attention_order,
        )
        upsample_heads = num_heads if num_heads_upsample == -1 else num_heads_upsample
        skip_channels = list(self.block_channels)
        channels = self.h_shape[0]
        downsampling = 2 ** (len(channel_mult) - 1)
        blocks = []
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                out = int(mult * model_channels)
                layers: list[nn.Module] = [
                    ResBlock(channels + skip_channels.pop(), self.emb_channels, dropout, out, use_scale_shift_norm)
                ]
                channels = out
                if downsampling in attention_resolutions:
                    layers.append(AttentionBlock(channels, upsample_heads, num_head_channels, use_new_attention_order))
                if level and i == num_res_blocks:
                    layers.append(
                        ResBlock(channels, self.emb_channels, dropout, channels, use_scale_shift_norm, "up")
                        if resblock_updown
                        else Upsample(channels, conv_resample)
                    )
                    downsampling //= 2
                blocks.append(TimestepEmbedSequential(*layers))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(
            GroupNorm32(channels), nn.SiLU(), zeroed(nn.Conv2d(channels, out_channels, 3, padding=1))
        )

    def decode(self, h: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        """The network's output from a (possibly shifted) h_t: [B, out_channels, H, W]; eps is its first in_channels."""
        if h.shape[1:] != self.h_shape and h.shape[1] != self.h_shape[0]:
            raise ValueError(f"h must be [B, {self.h_shape[0]}, H, W], got {list(h.shape)}")
        for block, skip in zip(self.output_blocks, reversed(skips), strict=True):
            h = block(torch.cat([h, skip], dim=1), emb)
        out: Tensor = self.out(h)
        return out

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """``decode(*encode(x, t, y))``."""
        return self.decode(*self.encode(x, t, y))


class EncoderUNetModel(EncoderHalf):
    """ADM's UNet encoder with adaptive average pooling: [B, C, H, W] -> [B, out_channels].

    The arguments are guided-diffusion's. Its attention and spatial pools are not built: ``pool`` must be "adaptive".
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        use_checkpoint: bool = False,
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        pool: str = "adaptive",
    ) -> None:
        del num_heads_upsample  # an encoder has no decoder heads; guided-diffusion ignores it as well
        if pool != "adaptive":
            raise ValueError(f'pool={pool!r}: only "adaptive" is supported')
        super().__init__(
            image_size,
            in_channels,
            model_channels,
            out_channels,
            num_res_blocks,
            attention_resolutions,
            dropout,
            channel_mult,
            conv_resample,
            dims,
            None,
            use_checkpoint,
            use_fp16,
            num_heads,
            num_head_channels,
            use_scale_shift_norm,
            resblock_updown,
            use_new_attention_order,
        )
        channels = self.h_shape[0]
        self.out = nn.Sequential(
            GroupNorm32(channels),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d((1, 1)),
            zeroed(nn.Conv2d(channels, out_channels, 1)),
            nn.Flatten(),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Logits, [B, out_channels]."""
        h, _, _ = self.encode(x, t)
        out: Tensor = self.out(h)
        return out


def zeroed(module: nn.Module) -> nn.Module:
    """The module with all parameters set to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
