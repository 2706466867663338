"""The networks of guided-diffusion ("ADM"): the UNet, split at the h-space, and its encoder.

Parameter names, shapes, initial weights and outputs are those of ``UNetModel`` and ``EncoderUNetModel`` of
openai/guided-diffusion (Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis"), so its checkpoints
load as they are. :mod:`hbench.models.guided_diffusion` reads its constructor arguments. Two things differ on purpose:

- ``forward`` is ``decode(*encode(x, t, y))``: a shifted generation step runs the encoder once and the decoder twice.
- No checkpoint call inside, unless :mod:`hbench.models.recompute` asks for it: a frozen model can be differentiated,
  and the strategy "vanilla" keeps the whole graph, as its name says.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from hbench.config import Experiment
from hbench.core.backbone import DiffusionModel
from hbench.errors import counted
from hbench.models.recompute import Recomputable

GROUPS = 32
"""Groups of every group norm, as in guided-diffusion."""


@dataclass(frozen=True, kw_only=True)
class ADMConfig:
    """The shape of an ADM network, named as in guided-diffusion.

    A level is the part of a network whose feature maps have one size.

    Raises:
        ValueError: no network has these sizes.
    """

    image_size: int
    """Height and width of the images in pixels."""
    in_channels: int
    """Channels of the images."""
    out_channels: int
    """Channels of the UNet's output, or number of the encoder's logits."""
    model_channels: int
    """Channels of a level with multiplier 1."""
    channel_mult: tuple[float, ...]
    """One channel multiplier for each level; every level but the last ends with a halving of the feature maps."""
    num_res_blocks: int
    """Residual blocks of each level of the encoder; the decoder's levels have one more."""
    attention_resolutions: tuple[int, ...] = ()
    """Feature-map sizes in pixels that get attention, as in an experiment; the middle block always has it."""
    num_heads: int = 1
    """Attention heads."""
    num_head_channels: int = -1
    """Channels of each attention head; -1 = given by the number of heads."""
    num_heads_upsample: int = -1
    """Attention heads of the decoder; -1 = as many as the encoder has."""
    num_classes: int | None = None
    """Classes of a class-conditional UNet; None = unconditional."""
    dropout: float = 0.0
    """Dropout probability inside the residual blocks, in [0, 1)."""
    conv_resample: bool = True
    """Resizing by convolutions rather than by plain pooling and repetition."""
    use_scale_shift_norm: bool = False
    """Scale and shift of the normalised features by the time embedding, instead of its addition before the norm."""
    resblock_updown: bool = False
    """Resizing inside residual blocks, in place of ``conv_resample``."""
    use_new_attention_order: bool = False
    """Order of the qkv channels; it changes the output but no name or shape, so it must match the checkpoint."""
    prediction: Literal["eps", "v", "x_0"] = "eps"
    """Quantity that the UNet predicts; nothing in the network depends on it."""

    def __post_init__(self) -> None:
        halvings = len(self.channel_mult) - 1
        if self.image_size % 2**halvings:
            raise ValueError(
                f"image_size {self.image_size} cannot be halved {counted(halvings, 'time')}: "
                f"make it a multiple of {2**halvings}"
            )
        if unknown := set(self.attention_resolutions) - set(self.sizes):
            raise ValueError(f"attention_resolutions {unknown}: the feature maps are {self.sizes} pixels wide")
        divisors = [self.num_heads, self.decoder_heads] if self.num_head_channels == -1 else [self.num_head_channels]
        for size, channels in zip(self.sizes, self.channels, strict=True):
            if channels % GROUPS:
                raise ValueError(
                    f"{channels} channels cannot be normalised in {GROUPS} groups: "
                    f"make model_channels * channel_mult multiples of {GROUPS}"
                )
            attended = size in (self.sizes[-1], *self.attention_resolutions)
            if attended and any(divisor < 1 or channels % divisor for divisor in divisors):
                raise ValueError(
                    f"{channels} channels cannot be split into heads: choose num_heads or num_head_channels that "
                    "divide them"
                )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Height and width of each level's feature maps, in pixels."""
        return tuple(self.image_size >> level for level in range(len(self.channel_mult)))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(int(mult * self.model_channels) for mult in self.channel_mult)

    @property
    def skip_channels(self) -> list[int]:
        """Channels of each input block's output: a convolution, then the blocks of each level and its halving."""
        blocks = [channels for channels in self.channels for _ in range(self.num_res_blocks + 1)]
        return [self.channels[0], *blocks[:-1]]  # the last level is not halved

    @property
    def emb_channels(self) -> int:
        """Channels of the time embedding."""
        return 4 * self.model_channels

    @property
    def decoder_heads(self) -> int:
        """Attention heads of the decoder, where ``num_head_channels`` does not give them."""
        return self.num_heads if self.num_heads_upsample == -1 else self.num_heads_upsample


def config_of(experiment: Experiment, out_channels: int) -> ADMConfig:
    """Return the shape that an experiment gives to its ADM networks, with so many output channels."""
    return ADMConfig(
        image_size=experiment.data.size,
        in_channels=experiment.data.channels,
        out_channels=out_channels,
        **experiment.model.model_dump(include={each.name for each in fields(ADMConfig)}),
    )


def unet_config(experiment: Experiment) -> ADMConfig:
    """Return the shape of an experiment's UNet."""
    channels = experiment.data.channels
    config = config_of(experiment, 2 * channels if experiment.model.learn_sigma else channels)
    return replace(config, prediction=experiment.diffusion.prediction)


def build_unet(experiment: Experiment) -> "UNetModel":
    """Return the UNet of an experiment with ADM's random initial weights."""
    return UNetModel(unet_config(experiment))


class EncoderHalf(nn.Module):
    """Time embedding, input blocks and middle block: the part that both ADM networks share."""

    def __init__(self, config: ADMConfig) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.in_channels
        self.emb_channels = config.emb_channels
        self.h_shape = (config.channels[-1], config.sizes[-1], config.sizes[-1])

        self.time_embed = nn.Sequential(
            nn.Linear(config.model_channels, config.emb_channels),
            nn.SiLU(),
            nn.Linear(config.emb_channels, config.emb_channels),
        )
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, config.emb_channels)

        channels = config.channels[0]
        blocks = [TimestepEmbedSequential(nn.Conv2d(config.in_channels, channels, 3, padding=1))]
        for level, out_channels in enumerate(config.channels):
            for _ in range(config.num_res_blocks):
                blocks.append(TimestepEmbedSequential(*_layers(config, level, channels, config.num_heads)))
                channels = out_channels
            if level < len(config.channels) - 1:
                blocks.append(
                    TimestepEmbedSequential(
                        ResBlock(config, channels, channels, Downsample(channels, use_conv=False))
                        if config.resblock_updown
                        else Downsample(channels, config.conv_resample)
                    )
                )
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = TimestepEmbedSequential(
            ResBlock(config, channels, channels),
            AttentionBlock(config, channels, config.num_heads),
            ResBlock(config, channels, channels),
        )

    def encode(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return h_t, the skip connections and the embedding of time (and class).

        Args:
            x: noisy images, [B, in_channels, H, W].
            t: integer timesteps in 0..T-1, [B].
            y: class labels, [B]; required for, and only for, class-conditional models.

        Returns:
            ``h`` [B, *h_shape], the output of the middle block; ``skips``, outputs of the input blocks, first to
            last; ``emb`` [B, emb_channels].

        Raises:
            ValueError: x does not fit the model, or y is missing or superfluous.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must be [B, {self.in_channels}, H, W], got {list(x.shape)}")
        if (y is None) != (self.config.num_classes is None):
            raise ValueError("pass y if and only if the model is class-conditional")
        emb = timestep_embedding(t, self.config.model_channels)
        emb = self.time_embed(emb.to(next(self.time_embed.parameters())))
        if y is not None:
            emb = emb + self.label_emb(y)
        h = x
        skips = []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        return self.middle_block(h, emb), skips, emb


class UNetModel(EncoderHalf, DiffusionModel):
    """ADM's UNet, a diffusion model.

    With learned sigma it has 2 ``in_channels`` outputs: the prediction first, then the variance, which hbench ignores.
    """

    def __init__(self, config: ADMConfig) -> None:
        super().__init__(config)
        self.prediction = config.prediction
        channels, skip_channels = config.channels[-1], config.skip_channels
        blocks = []
        for level, out_channels in reversed(list(enumerate(config.channels))):
            for i in range(config.num_res_blocks + 1):
                layers = _layers(config, level, channels + skip_channels.pop(), config.decoder_heads)
                channels = out_channels
                if level and i == config.num_res_blocks:
                    layers.append(
                        ResBlock(config, channels, channels, Upsample(channels, use_conv=False))
                        if config.resblock_updown
                        else Upsample(channels, config.conv_resample)
                    )
                blocks.append(TimestepEmbedSequential(*layers))
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(
            GroupNorm32(channels), nn.SiLU(), zeroed(nn.Conv2d(channels, config.out_channels, 3, padding=1))
        )

    def decode(self, h: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        """Return the output for a (possibly shifted) h_t.

        Args:
            h: h_t, [B, *h_shape].
            skips: the skip connections of :meth:`encode`.
            emb: the embedding of :meth:`encode`, [B, emb_channels].

        Returns:
            [B, out_channels, H, W], the first ``in_channels`` of which are the prediction.

        Raises:
            ValueError: h has another number of channels.
        """
        if h.shape[1] != self.h_shape[0]:
            raise ValueError(f"h must be [B, {self.h_shape[0]}, H, W], got {list(h.shape)}")
        for block, skip in zip(self.output_blocks, reversed(skips), strict=True):
            h = block(torch.cat([h, skip], dim=1), emb)
        out: Tensor = self.out(h)
        return out

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return ``decode(*encode(x, t, y))``, [B, out_channels, H, W]."""
        return self.decode(*self.encode(x, t, y))


class EncoderUNetModel(EncoderHalf):
    """ADM's UNet encoder with adaptive average pooling, the only one of guided-diffusion's poolings that hbench has.

    Raises:
        ValueError: the configuration has classes.
    """

    def __init__(self, config: ADMConfig) -> None:
        if config.num_classes is not None:
            raise ValueError("num_classes: the encoder takes no class labels")
        super().__init__(config)
        channels = config.channels[-1]
        self.out = nn.Sequential(
            GroupNorm32(channels),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d((1, 1)),
            zeroed(nn.Conv2d(channels, config.out_channels, 1)),
            nn.Flatten(),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return logits [B, out_channels] of images [B, in_channels, H, W] at timesteps [B]."""
        h, _, _ = self.encode(x, t)
        out: Tensor = self.out(h)
        return out


# Blocks -------------------------------------------------------------------------------------------------------------


class TimestepEmbedSequential(nn.Sequential, Recomputable):
    """A sequence of layers, of which the residual blocks also receive the time embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        """Return the output of the last layer."""
        return self.compute(self._layers, x, emb)

    def _layers(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


def _layers(config: ADMConfig, level: int, channels: int, num_heads: int) -> list[nn.Module]:
    """Return a residual block from so many channels to those of a level, and its attention if it has any."""
    out_channels = config.channels[level]
    layers: list[nn.Module] = [ResBlock(config, channels, out_channels)]
    if config.sizes[level] in config.attention_resolutions:
        layers.append(AttentionBlock(config, out_channels, num_heads))
    return layers


class ResBlock(nn.Module):
    """Residual block conditioned on the time embedding; ``resample`` resizes both of its branches."""

    def __init__(self, config: ADMConfig, channels: int, out_channels: int, resample: nn.Module | None = None) -> None:
        super().__init__()
        self.use_scale_shift_norm = config.use_scale_shift_norm
        self.in_layers = nn.Sequential(
            GroupNorm32(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.resample = nn.Identity() if resample is None else resample
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(config.emb_channels, 2 * out_channels if self.use_scale_shift_norm else out_channels)
        )
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if out_channels == channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map x [B, channels, H, W] to [B, out_channels, H', W'], given the embedding [B, emb_channels]."""
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
    """Self-attention over positions, in either of guided-diffusion's two qkv channel orders."""

    def __init__(self, config: ADMConfig, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads if config.num_head_channels == -1 else channels // config.num_head_channels
        self.use_new_attention_order = config.use_new_attention_order
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to the same shape."""
        batch, channels, *spatial = x.shape
        flat = x.reshape(batch, channels, -1)
        qkv = self.qkv(self.norm(flat))
        if self.use_new_attention_order:  # [3, heads, channels per head]
            q, k, v = qkv.reshape(batch, 3, self.num_heads, -1, flat.shape[-1]).unbind(1)
        else:  # [heads, 3, channels per head]
            q, k, v = qkv.reshape(batch, self.num_heads, 3, -1, flat.shape[-1]).unbind(2)
        h = _attention(q.mT, k.mT, v.mT).mT.reshape(batch, channels, -1)
        out: Tensor = flat + self.proj_out(h)
        return out.reshape(batch, channels, *spatial)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the values v as q and k weigh them, all [B, heads, positions, channels per head]."""
    if q.is_cuda:  # its fused kernels need the channels last in memory; on the CPU small ones would be slower
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    if q.is_cuda and q.dtype == torch.float32 and torch.compiler.is_compiling():
        # the compiler chooses other layouts, for which the fused kernel of float32 says that it finds none to launch
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution if asked for."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Double the size: [B, C, H, W] -> [B, C, 2H, 2W]."""
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        out: Tensor = self.conv(x)
        return out


class Downsample(nn.Module):
    """Halving by a strided 3x3 convolution, or by average pooling."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the size: [B, C, H, W] -> [B, C, H/2, W/2]."""
        out: Tensor = self.op(x)
        return out


class GroupNorm32(nn.GroupNorm):
    """Group norm with 32 groups that accumulates at least in float32, and returns its input's dtype.

    Channels that 32 does not divide, which only other networks have, get fewer groups: the largest common divisor.
    Activations are never copied to float32, which would be most of the time of such a layer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(GROUPS, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, ...]."""
        # Float32 parameters with bfloat16 input have a kernel on the CPU; CUDA has none, and autocast, which it is
        # left out for, would make the input float32.
        return self.with_cast_parameters(x) if x.is_cuda and x.dtype == torch.bfloat16 else super().forward(x)

    def with_cast_parameters(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, ...] with scale and bias in its own dtype, and statistics in float32."""
        with torch.autocast(x.device.type, enabled=False):
            # by a layer norm for each group: CUDA's group norm rounds the statistics to bfloat16
            groups = x.reshape(len(x), self.num_groups, -1)
            normal = F.layer_norm(groups, groups.shape[2:], eps=self.eps).view_as(x)
            scale, bias = (v.to(x.dtype).view(-1, *[1] * (x.ndim - 2)) for v in (self.weight, self.bias))
            return torch.addcmul(bias, normal, scale)


def timestep_embedding(t: Tensor, channels: int, max_period: float = 10_000) -> Tensor:
    """Return the sinusoidal embedding of integer timesteps: [B] -> [B, channels], cosines first, float32."""
    half = channels // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * frequencies[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, channels % 2))


def zeroed(module: nn.Module) -> nn.Module:
    """Set all parameters of a module to zero, and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
