"""Experiments: one TOML file each, read into frozen, validated settings.

An experiment is a named file of ``experiments/``, changed only by overrides, ``section.key=value``. The resolved
settings are saved with every run and inside every weights file, so that a run folder explains itself.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hbench.errors import counted

Precision = Literal["float32", "bfloat16"]


Count = Annotated[int, Field(ge=1, le=10**9)]
"""Number of steps; the bound is beyond all trainings."""
Batch = Annotated[int, Field(ge=2, le=10**6)]
"""Number of images or pairs of a step."""
Rate = Annotated[float, Field(gt=0, le=10)]
"""Learning rate."""
Weight = Annotated[float, Field(ge=0, le=1e6)]
"""Weight of a loss."""
Channels = Annotated[int, Field(ge=1, le=8192)]
"""Number of channels, or of a factor of them."""
Pixels = Annotated[int, Field(ge=1, le=1024)]
"""Width in pixels."""
Beta = Annotated[float, Field(ge=0, le=1)]
"""Variance of the noise of one step."""
Distance = Annotated[float, Field(ge=0, le=1e6)]
"""Frechet distance."""

NEARLY_NOISE = 1e-3
"""Largest alpha_bar(T - 1) that counts as pure noise: its image has 3 % of the noise's amplitude."""
NO_IMAGE = 1e-30
"""Smallest alpha_bar(T - 1): below it, float32 has no room for the image's amplitude."""


class Section(BaseModel):
    """A frozen table of settings that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_truth(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and key in cls.model_fields and cls.model_fields[key].annotation is not bool:
                raise ValueError(
                    f"{cls.__name__.lower()}.{key} is {str(value).lower()}: need a value, not true or false"
                )
        return values


class Data(Section):
    """Source of the images, and the shape they get."""

    dataset: str = Field(pattern=r"^\w[\w.-]*$", max_length=100)
    """Name of a data set: one of hbench's, :data:`hbench.store.registry.DATASETS`, or of another package's."""
    label: str = Field(default="Pictures", pattern=r"^\w[\w .()+-]*$", max_length=100)
    """Name of the data in the paper's notation, "MNIST" in MNIST32-400-20-32-5."""
    size: int = Field(ge=8, le=1024)
    """Height and width in pixels after resizing and centre crop."""
    channels: Literal[1, 3] = 3
    """Channels of an image: 1 is grey, 3 is RGB."""
    root: str | None = Field(default=None, min_length=1, exclude=True)
    """Folder of the data set, by default none; a relative path in an experiment file starts at the file. It says where
    the images are, not what they are: no weights, results or comparisons keep it."""
    background: str = Field(default="white", pattern="^(white|black|#[0-9A-Fa-f]{6})$")
    """Colour beneath transparent pictures: "white", "black", or one as in "#ff8800"."""
    flip: bool = False
    """Random mirroring of half of the images in every step of pretraining, left to right; refused for digits."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image."""
        return self.channels, self.size, self.size

    @property
    def mode(self) -> Literal["L", "RGB"]:
        """Pillow's name of the kind of pixels."""
        return "L" if self.channels == 1 else "RGB"


DownBlock = Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
UpBlock = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
Resampling = Literal["conv", "resnet"]


class UNet2D(Section):
    """The ``UNet2DModel`` of diffusers, in the terms and with the defaults of its ``config.json``.

    There are only values with which the network can be split at its middle block.
    """

    down_block_types: tuple[DownBlock, ...] = Field(min_length=1, max_length=10)
    up_block_types: tuple[UpBlock, ...] = Field(min_length=1, max_length=10)
    block_out_channels: tuple[Channels, ...] = Field(min_length=1, max_length=10)
    """Channels of each level; every level but the last ends with a halving of the feature maps."""
    layers_per_block: int = Field(default=2, ge=1, le=100)
    mid_block_scale_factor: float = Field(default=1.0, gt=0, le=1e6)
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Resampling = "conv"
    upsample_type: Resampling = "conv"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    act_fn: Literal["swish", "silu", "mish", "gelu", "relu"] = "silu"
    attention_head_dim: int = Field(default=8, ge=0, le=8192)
    """Channels of each attention head; 0, null in diffusers, for one head of all channels."""
    norm_num_groups: Channels = 32
    attn_norm_num_groups: Channels | None = None
    norm_eps: float = Field(default=1e-5, gt=0, le=1)
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True
    """Attention of the middle block."""
    time_embedding_type: Literal["positional", "learned"] = "positional"
    time_embedding_dim: Channels | None = None
    freq_shift: int = Field(default=0, ge=0, le=1)
    flip_sin_to_cos: bool = True
    num_train_timesteps: Count | None = None
    """Number of learned embeddings of time."""
    num_class_embeds: Count | None = None
    """Number of classes of a class-conditional network; none for an unconditional one."""
    class_label: int | None = Field(default=None, ge=0, le=10**9)
    """The one class of which a class-conditional network makes images."""

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        levels = len(self.block_out_channels)
        if not levels == len(self.down_block_types) == len(self.up_block_types):
            raise ValueError(
                "model.unet2d: block_out_channels, down_block_types and up_block_types differ in length: each has one "
                "value a level"
            )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"model.unet2d: {channels} channels cannot be normalised in {self.norm_num_groups} groups: make "
                    "block_out_channels multiples of norm_num_groups"
                )
            if self.attention_head_dim > channels:
                raise ValueError(
                    f"model.unet2d.attention_head_dim = {self.attention_head_dim} is more than {channels}, the "
                    "channels of a level: make it smaller"
                )
        if self.attn_norm_num_groups and self.block_out_channels[-1] % self.attn_norm_num_groups:
            raise ValueError("model.unet2d.attn_norm_num_groups must divide the channels of the last level")
        return self

    @model_validator(mode="after")
    def _check_embeddings(self) -> Self:
        if self.time_embedding_type == "learned" and self.num_train_timesteps is None:
            raise ValueError('model.unet2d.time_embedding_type = "learned" needs num_train_timesteps')
        if (classes := self.num_class_embeds) and self.class_label is None:
            raise ValueError(
                f"is class-conditional ({counted(classes, 'class', 'classes')}), and directions are those of one class:"
                " set model.unet2d.class_label, or give `class_label`"
            )
        if self.class_label is not None and self.class_label >= (classes or 0):
            known = f"its classes are 0..{classes - 1}" if classes else "the network has no classes: leave it out"
            raise ValueError(f"model.unet2d.class_label = {self.class_label}: {known}")
        return self


class Model(Section):
    """The diffusion model: the ADM UNet (Table 3), in guided-diffusion's terms, or that of ``unet2d`` or ``backbone``.

    The discriminator is ADM's encoder: it has the shape of the ADM UNet, and keeps these settings beside both.
    """

    path: str | None = Field(default=None, min_length=1, exclude=True)
    """Model to search for directions, by default the pretrained one of the experiment: a folder or file, of which a
    relative path in an experiment file starts at the file, or an id of the Hugging Face Hub. It says where the weights
    are, not what they are: nothing that is written keeps it."""
    unet2d: UNet2D | None = None
    """Settings of a UNet of diffusers; by default the UNet is ADM's."""
    backbone: str | None = Field(default=None, pattern=r"^\w[\w.-]*$", max_length=100)
    """Name of another package's network, an entry point of the group ``hbench.backbones``; by default none. What it
    takes of the other settings is its own matter."""
    model_channels: int = Field(ge=32, le=8192)
    channel_mult: tuple[Channels, ...] = Field(min_length=1, max_length=10)
    num_res_blocks: int = Field(default=2, ge=1, le=100)
    attention_resolutions: tuple[Pixels, ...] = Field(default=(), max_length=10)
    """Feature-map sizes in pixels that get attention; the middle block always has it, as in ADM."""
    num_heads: Channels = 1
    num_head_channels: int = Field(default=-1, ge=-1, le=8192)
    """Channels of each attention head; -1 = given by num_heads."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    conv_resample: bool = True
    learn_sigma: bool = False
    """Twice the output channels, for checkpoints that also predict the variance, which is not used."""
    use_new_attention_order: bool = False
    """Order of the qkv channels; it changes the output but no name or shape, so it must match the checkpoint."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.backbone is not None and self.unet2d is not None:
            raise ValueError("model.backbone and model.unet2d are two networks: leave one of both out")
        return self

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        for mult in self.channel_mult:
            if self.model_channels * mult > 8192:
                raise ValueError(f"model.model_channels * {mult} is beyond 8192 channels: make one of both smaller")
            if self.model_channels * mult % 32:
                raise ValueError(
                    f"model.model_channels * {mult} is not a multiple of 32, the number of groups of ADM's group norm"
                )
        if self.num_head_channels == 0:
            raise ValueError("model.num_head_channels must be positive, or -1 for as many as num_heads gives")
        return self

    def check_size(self, size: int) -> None:
        """Raise a ValueError where the network cannot have images of this size, in pixels."""
        halvings = len(self.channel_mult) - 1
        if size % 2**halvings:
            raise ValueError(
                f"data.size {size} cannot be halved {counted(halvings, 'time')}: shorten model.channel_mult"
            )
        widths = [size >> i for i in range(halvings + 1)]
        for attended in self.attention_resolutions:
            if attended not in widths:
                raise ValueError(f"model.attention_resolutions: no feature map is {attended} pixels wide")
        divisor = self.num_heads if self.num_head_channels == -1 else self.num_head_channels
        for width, mult in zip(widths, self.channel_mult, strict=True):
            channels = self.model_channels * mult
            attends = width in self.attention_resolutions or width == widths[-1]
            if attends and channels % divisor:
                raise ValueError(f"{channels} channels cannot be split into model.num_heads or model.num_head_channels")
        if self.unet2d and size % 2 ** (levels := len(self.unet2d.block_out_channels) - 1):
            raise ValueError(
                f"data.size {size} cannot be halved {counted(levels, 'time')}: shorten the lists of model.unet2d"
            )


class Diffusion(Section):
    """What the network predicts, and the noise schedule."""

    prediction: Literal["eps", "v", "x_0"] = "eps"
    """Quantity that the network predicts: the noise, as in the paper and in guided-diffusion; the velocity v =
    sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022); or the clean image. The noise needs a longer
    training: near t = T - 1 the error of x_0 is some 150 times that of eps, but no larger than that of v."""

    T: int = Field(default=1000, ge=2, le=100_000)
    noise_schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    """Kind of betas, see :func:`hbench.core.diffusion.alpha_bar_schedule`: linear ones, squares of linear ones, both
    from ``beta_start`` to ``beta_end``, or those of a cosine, which need neither."""
    beta_start: float = Field(default=1e-4, ge=1e-9, lt=1)
    beta_end: float = Field(default=0.02, ge=1e-9, lt=1)
    trained_betas: tuple[Beta, ...] | None = Field(default=None, min_length=2, max_length=100_000)
    """The T betas themselves, in place of a kind."""
    zero_terminal_snr: bool = False
    """Rescaling of the schedule to alpha_bar(T - 1) = 0, so that the last x_t is pure noise (Lin et al. 2024)."""
    steps_offset: int = Field(default=0, ge=0, le=100_000)
    """Number that is added to the timesteps of ``discovery.spacing = "leading"``, as in diffusers."""

    @property
    def schedule(self) -> dict[str, Any]:
        """Arguments of the noise schedule."""
        return self.model_dump(exclude={"prediction", "steps_offset"})

    @property
    def last_alpha_bar(self) -> float:
        """Value of alpha_bar(T - 1): the share of the image in the variance of the last x_t, ideally near 0."""
        if self.zero_terminal_snr:
            return 0.0
        if self.trained_betas is not None:
            return math.prod(1 - beta for beta in self.trained_betas)
        if self.noise_schedule == "cosine":  # a product of ratios, of which the last is capped
            return 1e-3 * cosine_alpha_bar((self.T - 1) / self.T) / cosine_alpha_bar(0)
        return _last_alpha_bar(self.T, self.beta_start, self.beta_end, self.noise_schedule == "scaled_linear")

    @property
    def advice(self) -> str | None:
        """Warning, in words, that generation starts from noise which the model has never seen; None where it has.

        Training shows the model x_t up to T - 1, where alpha_bar(T - 1) of the variance is still image; generation
        starts from pure noise in its place.
        """
        if self.last_alpha_bar <= NEARLY_NOISE:
            return None
        if self.trained_betas is not None or self.noise_schedule != "linear":
            return (
                f"the noise schedule leaves alpha_bar(T - 1) = {self.last_alpha_bar:.2g}, which should be near 0: "
                "generation starts from pure noise, which the model then never saw: a pretraining with "
                'diffusion.noise_schedule = "cosine" does not'
            )
        advice = "make diffusion.T larger"
        if _last_alpha_bar(self.T, self.beta_start, 0.99) <= NEARLY_NOISE:
            low, high = self.beta_end, 0.99
            while high > 1.01 * low:
                middle = math.sqrt(low * high)
                enough = _last_alpha_bar(self.T, self.beta_start, middle) <= NEARLY_NOISE / 10
                low, high = (low, middle) if enough else (middle, high)
            advice = f"with this T, set diffusion.beta_end = {high:.2g}"
        return (
            f"diffusion.T = {self.T} and diffusion.beta_end = {self.beta_end:g} leave alpha_bar(T - 1) = "
            f"{self.last_alpha_bar:.2g}, which should be near 0: generation starts from pure noise, which the model "
            f"then never saw: {advice}"
        )

    @model_validator(mode="after")
    def _check_betas(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError("diffusion.beta_start must not exceed diffusion.beta_end")
        if self.trained_betas is not None and len(self.trained_betas) != self.T:
            n = len(self.trained_betas)
            raise ValueError(
                f"diffusion.trained_betas has {n} values, and diffusion.T is {self.T}: set diffusion.T = {n}"
            )
        if self.last_alpha_bar == 0:
            if self.prediction == "eps":
                raise ValueError(
                    "alpha_bar(T - 1) = 0 leaves no image in the last x_t, and the noise alone does not tell it: set "
                    'diffusion.prediction to "v" or "x_0", or leave diffusion.zero_terminal_snr out'
                )
        elif self.last_alpha_bar < NO_IMAGE:
            raise ValueError(
                f"diffusion.T = {self.T} and diffusion.beta_end = {self.beta_end:g} leave alpha_bar(T - 1) = "
                f"{self.last_alpha_bar:.2g}, too little for float32: make one of both smaller"
            )
        return self


def _last_alpha_bar(T: int, beta_start: float, beta_end: float, squares: bool = False) -> float:
    """Return the product of 1 - beta_t over T linear betas, or over squares of linear values."""
    if squares:
        beta_start, beta_end = math.sqrt(beta_start), math.sqrt(beta_end)
    step, power = (beta_end - beta_start) / (T - 1), 2 if squares else 1
    return math.exp(math.fsum(math.log1p(-((beta_start + step * t) ** power)) for t in range(T)))


def cosine_alpha_bar(share: float) -> float:
    """Return the cosine schedule's alpha_bar at a share of T, up to a factor (Nichol & Dhariwal 2021, Eq. 17)."""
    return math.cos((share + 0.008) / 1.008 * math.pi / 2) ** 2


class Pretrain(Section):
    """Training of the diffusion model itself."""

    steps: Count = 100_000
    batch_size: int = Field(default=128, ge=1, le=10**6)
    lr: Rate = 1e-4
    """Adam's learning rate after warm-up."""
    warmup_steps: int = Field(default=1000, ge=0, le=10**9)
    """Steps of the linear rise of the learning rate."""
    decay: bool = False
    """Linear fall of the learning rate to zero, from the end of the warm-up to the last step."""
    ema: float = Field(default=0.9999, ge=0, lt=1)
    """Decay of the exponential moving average; the average is exported."""
    grad_clip: float = Field(default=1.0, gt=0, le=1e12)
    """Largest norm of the gradient."""
    precision: Precision = "bfloat16"
    """Precision of the passes: bfloat16 is autocast with float32 weights."""
    capture: Literal["auto", "never"] = "auto"
    """Replay of the pass forward and backward as a CUDA graph: on CUDA, by "auto", of models without dropout."""
    weights: Literal["float32", "float16"] = "float32"
    """Storage of the exported weights."""
    checkpoint_every: Count = 500
    """Steps between resumable checkpoints and curve pictures."""
    sample_every: Count = 1000
    """Steps between sample grids."""


class Discovery(Section):
    """Discovery of directions (Table 4)."""

    K: int = Field(ge=2, le=4096)
    """Number of directions; a measurement of RCA keeps K x K counts."""
    S: float = Field(gt=0, le=1e6)
    """Largest magnitude: s is uniform in [-S, S]."""
    M: int = Field(default=20, ge=1, le=100_000)
    """Number of generation steps."""
    t_shift: int = Field(default=400, ge=0, le=100_000)
    """Lower end of the shift interval: h_t is shifted at timesteps t >= t_shift."""
    spacing: Literal["trailing", "linspace", "leading", "skipping"] = "trailing"
    """Placement of the M timesteps in 0..T-1 [reconstructed]. With few steps "skipping" makes better samples: one step
    crosses the levels of nearly pure noise."""
    h_scale: float = Field(default=1.0, gt=0, le=1e6)
    """Factor of every delta_h. Models differ in the standard deviation of h_t, from 1 to 20 so far, and shifts far
    below it change no image, so that nothing is learned. The start of a discovery tells it: with an h_scale of about
    that size, S means the same for every model [reconstructed]."""
    start: float = Field(default=0.0, ge=0, le=10)
    """Size of the random directions that training starts from, at 1 about that of ``h_scale``. From 0, as in Asyrp,
    all directions are alike at first, and some may stay at nothing."""
    keep_size: bool = False
    """True keeps the norm of each direction's output weights as ``start`` gives it, as the unit columns of
    GANLatentDiscovery are kept, so that no direction can shrink to nothing."""
    min_magnitude: float = Field(default=0.5, ge=0, le=1e6)
    """Smallest magnitude: a smaller |s| is raised to it, as in GANLatentDiscovery [reconstructed]."""
    steps: Count
    batch_size: Batch = 32
    """Pairs of a step: at least 2, for the batch norm of the reconstructor."""
    lr: Rate = 1e-3
    """Adam's learning rate for shift block and reconstructor."""
    lr_discriminator: Rate = 1e-3
    decay: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps, at the end, over which both learning rates fall linearly to zero."""
    lambda_reg: Weight = 0.1
    """Weight of |s_hat - s| [reconstructed]."""
    lambda_adv: Weight = 0.1
    """Weight of the adversarial loss [reconstructed]."""
    fidelity: Literal["adversarial", "l1", "none"] = "adversarial"
    """Loss that keeps x'_0 an image: the discriminator's; the abandoned lambda_l1/|s| * mean |x'_0 - x_0| of Fig. 3
    [reconstructed]; or none. The discriminator is always trained: by the last two as an observer without a gradient."""
    lambda_l1: Weight = 0.3
    """Weight of the loss of fidelity = "l1", a mean over pixels and channels of images in [-1, 1] [reconstructed].
    On mnist16, 0.3 lets images change as much as the discriminator does, 1 less than half as much, 5 not at all."""
    gradient: Literal["chain", "linear", "truncated", "one-step", "per-step"] = "chain"
    """Path of the gradient: through the whole chain, or an approximation (hbench.core.approximations): "linear" without
    the network's Jacobian, as in DRTune; "truncated" through the last steps alone, as in DRaFT; "one-step" through the
    last shifted step, on its predicted x_0, as in ReFL; "per-step" through each shifted step alone, with an optimiser
    step on its predicted x_0, as DiffusionCLIP and Asyrp train (Sec. 4.4) [reconstructed]. ``strategy`` is for the
    first three."""
    last_steps: int | None = Field(default=None, ge=1, le=100_000)
    """Number of steps, the last ones, that gradient = "truncated" passes: DRaFT's K. It must be large enough to reach a
    shifted timestep, and these come first."""
    soft_clip: float = Field(default=1.1, gt=0, le=1e6)
    """Bound beyond which the reconstructor and the discriminator see a tenth of a value's excess. Values that no image
    has cannot win, and the gradient back into range stays, which a clamp would kill [reconstructed]."""
    reconstructor: Literal["lenet", "resnet18"] = "lenet"
    reconstructor_noise: float = Field(default=0.0, ge=0, le=1)
    """Standard deviation of the fresh noise that the reconstructor sees on both images in training, images in [-1, 1]:
    what is too small to be seen can then not be told. 0, as in the paper, for none."""
    lambda_odd: Weight = 0.0
    """Weight of the oddness loss, 1 + the cosine of the changes that s and -s make to one x_0: it wants them on
    opposite sides of it. Where it is positive, a batch is made of such pairs. 0, as in the paper, for neither."""
    strategy: Literal["auto", "node", "vanilla", "offload", "torch-checkpoint"] = "auto"
    """Strategy of back-propagation through the chain (hbench.core.chain): all give the same gradients. "auto" measures
    one step and takes "node" with as many kept graphs as fit into ``memory_budget``."""
    keep: int = Field(default=0, ge=0, le=100_000)
    """Number of steps, the last ones, whose graphs strategy = "node" keeps instead of recomputing them."""
    nodes: Literal["device", "cpu"] = "device"
    """Place where strategy = "node" keeps the M nodes of the chain. "cpu" is for many steps of large images: memory on
    the GPU is then the same for every M. Without a GPU both are one."""
    memory_budget: float | None = Field(default=None, gt=0, le=1e6)
    """GiB for a training step under "auto". The default is a share of the free memory: nine tenths on a GPU, half on
    the CPU, which is not training's alone."""
    checkpoint_blocks: bool = False
    """Recomputation inside a step: only the ends of each block of the UNet and of the discriminator are kept. It is for
    models whose single step does not fit, and costs about one more forward pass of the differentiated networks."""
    compile: bool = False
    """Compilation of encoder and decoder by torch.compile: minutes before the first step, faster ones after it
    (results/bench). It needs a C++ compiler, on CUDA Triton and a C compiler."""
    capture: Literal["auto", "never"] = "auto"
    """Replay of generation steps as CUDA graphs: on CUDA, by "auto", of the steps that are recomputed and of all passes
    without a gradient, compiled or not. What CUDA cannot record runs as it is, and a line says why."""
    pool: int = Field(default=0, ge=0, le=10**8)
    """Number of pairs (x_T, x_0) that are made once and drawn from in every step; 0 = new ones in every step."""
    precision: Precision = "bfloat16"
    """Precision of the networks: bfloat16 is autocast; nodes, weights and losses stay float32."""
    weights: Literal["float32", "float16"] = "float32"
    """Storage of the exported weights."""
    checkpoint_every: Count = 200
    """Steps between resumable checkpoints and curve pictures."""

    @model_validator(mode="after")
    def _check_strategy(self) -> Self:
        if self.keep > self.M:
            raise ValueError(f"discovery.keep must not exceed discovery.M = {self.M}")
        if self.keep and self.strategy != "node":
            raise ValueError('discovery.keep goes with discovery.strategy = "node"; "auto" finds it by itself')
        if self.nodes == "cpu" and self.strategy not in ("auto", "node"):
            raise ValueError('discovery.nodes = "cpu" goes with discovery.strategy = "node" or "auto"')
        if self.compile and self.strategy == "offload":
            raise ValueError(
                'discovery.compile and discovery.strategy = "offload" were never tried together: use one of both'
            )
        if self.memory_budget and self.strategy != "auto":
            raise ValueError('discovery.memory_budget goes with discovery.strategy = "auto"')
        if self.lambda_odd and self.batch_size % 2:
            raise ValueError("discovery.lambda_odd makes a batch of pairs: make discovery.batch_size even")
        return self

    @model_validator(mode="after")
    def _check_gradient(self) -> Self:
        if self.gradient == "truncated" and self.last_steps is None:
            raise ValueError('discovery.gradient = "truncated" needs discovery.last_steps, DRaFT\'s K')
        if self.last_steps is not None and self.gradient != "truncated":
            raise ValueError(f'discovery.last_steps goes with discovery.gradient = "truncated", not "{self.gradient}"')
        if self.last_steps is not None and self.last_steps > self.M:
            raise ValueError(f"discovery.last_steps must not exceed discovery.M = {self.M}")
        return self

    @model_validator(mode="after")
    def _check_magnitudes(self) -> Self:
        if self.min_magnitude > self.S:
            raise ValueError("discovery.min_magnitude must not exceed discovery.S")
        if self.keep_size and not self.start:
            raise ValueError(
                "discovery.keep_size keeps the size that discovery.start gives: make discovery.start positive"
            )
        if self.fidelity == "l1" and not self.min_magnitude:
            raise ValueError('discovery.fidelity = "l1" divides by |s|: make discovery.min_magnitude positive')
        return self

    def check_schedule(self, T: int) -> None:
        """Raise a ValueError where a schedule of T timesteps cannot serve the discovery."""
        if self.M > T:
            raise ValueError(f"discovery.M must not exceed diffusion.T = {T}")
        if self.t_shift >= T:
            raise ValueError(f"discovery.t_shift must be below diffusion.T = {T}, or nothing is shifted")


class Evaluation(Section):
    """Number of images that are generated to measure a result."""

    fid_samples: int = Field(default=10_000, ge=2, le=10**8)
    """Number of raw samples, and of shifted ones, in a FID (Table 2)."""
    sweep_batch_size: Batch | None = None
    """Pairs of a step in a sweep of memory (Fig. 4); by default those of the discovery."""


class Paper(Section):
    """The paper's own numbers for this experiment, where it has them, to stand beside ours."""

    rca: float | None = Field(default=None, ge=0, le=1)
    """RCA in Table 1."""
    mos: float | None = Field(default=None, ge=0, le=1)
    """MOS in Table 1."""
    fid_raw: Distance | None = None
    """FID of raw samples in Table 2."""
    fid_shifted: Distance | None = None
    """FID of shifted samples in Table 2."""


class Experiment(Section):
    """A whole experiment, named as its file."""

    name: str = Field(min_length=1, max_length=200)
    data: Data
    model: Model
    diffusion: Diffusion = Diffusion()
    pretrain: Pretrain = Pretrain()
    discovery: Discovery
    evaluation: Evaluation = Evaluation()
    paper: Paper = Paper()

    @property
    def title(self) -> str:
        """The paper's notation dataset+size-t_shift-M-K-S, as in ``MNIST32-400-20-32-5``."""
        d = self.discovery
        return f"{self.data.label}{self.data.size}-{d.t_shift}-{d.M}-{d.K}-{d.S:g}"

    @model_validator(mode="after")
    def _check_across_sections(self) -> Self:
        self.model.check_size(self.data.size)
        self.discovery.check_schedule(self.diffusion.T)
        if self.discovery.reconstructor == "lenet" and self.data.size < 12:
            raise ValueError(f"data.size {self.data.size} is too small for the LeNet reconstructor: need at least 12")
        return self
