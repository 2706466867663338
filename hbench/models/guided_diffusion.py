"""The settings of openai/guided-diffusion: arguments of its networks, and defaults of its command line."""

from collections.abc import Sequence
from typing import Any

from hbench.config import Experiment
from hbench.errors import HBenchError
from hbench.experiments import filled_in
from hbench.models.adm import ADMConfig

SILENT = {
    "model": ("num_heads", "num_head_channels", "use_new_attention_order"),
    "diffusion": ("prediction", "T", "noise_schedule", "beta_start", "beta_end", "trained_betas", "zero_terminal_snr"),
}
"""Settings with defaults that change the images, but no name and no shape in a state dict."""


def with_its_defaults(experiment: Experiment) -> Experiment:
    """Return the experiment for a state dict of guided-diffusion: silent settings left out are as its flags left out.

    Its linear schedule of T steps has the betas 1e-4 and 0.02, times 1000 / T; its cosine schedule has none.

    Raises:
        HBenchError: that linear schedule has betas of 1 and more.
    """
    given, betas = experiment.diffusion, {}
    if given.noise_schedule == "linear":
        scale = 1000 / given.T if "T" in given.model_fields_set else 1.0
        if scale * 0.02 >= 1 and "beta_end" not in given.model_fields_set:
            raise HBenchError(
                f"diffusion.T = {given.T} is too small for guided-diffusion's linear schedule: give beta_end"
            )
        betas = {"beta_start": scale * 1e-4, "beta_end": scale * 0.02}
    heads = {"num_heads": 4, "num_head_channels": -1, "use_new_attention_order": False}
    return filled_in(experiment, {"model": heads, "diffusion": {"prediction": "eps", "T": 1000, **betas}})


def silent_settings(
    experiment: Experiment, sections: Sequence[str] = tuple(SILENT), *, with_origin: bool = True
) -> str:
    """Return the settings that no state dict betrays, in words, by default each with where it comes from."""
    diffusion, words = experiment.diffusion, []
    without_effect = {
        *(["num_heads"] if experiment.model.num_head_channels != -1 else []),
        *(["beta_start", "beta_end"] if diffusion.trained_betas or diffusion.noise_schedule == "cosine" else []),
        *(name for name in ("trained_betas", "zero_terminal_snr") if not getattr(diffusion, name)),
    }
    for section in sections:
        settings = getattr(experiment, section)
        for name in SILENT[section]:
            if name in without_effect:
                continue
            origin = " (given)" if name in settings.model_fields_set else " (its default)"
            words.append(f"{name} = {str(getattr(settings, name)).lower()}{origin if with_origin else ''}")
    return ", ".join(words)


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
