"""Constructor arguments of openai/guided-diffusion's networks, read as an :class:`ADMConfig`."""

from collections.abc import Sequence
from typing import Any

from hbench.models.adm import ADMConfig


def config_from_guided_diffusion(
    *,
    image_size: int,
    attention_resolutions: Sequence[int],
    channel_mult: Sequence[float] = (1, 2, 4, 8),
    dims: int = 2,
    use_checkpoint: bool = False,
    use_fp16: bool = False,
    pool: str = "adaptive",
    **fields: Any,
) -> ADMConfig:
    """Return the shape of the network that guided-diffusion builds from these arguments.

    Args:
        image_size: height and width of the images in pixels.
        attention_resolutions: downsampling factors that get attention, 2 = at half the size. Factors that no level has
            are ignored, as in guided-diffusion.
        channel_mult: one channel multiplier for each level.
        dims: number of spatial dimensions, 2.
        use_checkpoint: False.
        use_fp16: False.
        pool: the encoder's pool, "adaptive".
        fields: arguments that are fields of :class:`ADMConfig`.

    Raises:
        ValueError: hbench does not support a value, or no network has these sizes.
    """
    if dims != 2:
        raise ValueError(f"dims={dims}: only images are supported, use dims=2")
    if use_checkpoint:
        raise ValueError(
            "use_checkpoint=True: leave it False, and call checkpoint_blocks on the network or choose a strategy "
            "of hbench.backpropagate instead (the outputs are the same)"
        )
    if use_fp16:
        raise ValueError("use_fp16=True: leave it False and run the model under torch.autocast instead")
    if pool != "adaptive":
        raise ValueError(f'pool={pool!r}: only "adaptive" is supported')
    return ADMConfig(
        image_size=image_size,
        channel_mult=tuple(channel_mult),
        attention_resolutions=tuple(
            image_size >> level for level in range(len(channel_mult)) if 2**level in attention_resolutions
        ),
        **fields,
    )
