"""What an edit of a real image costs: how much else changes, and what is lost."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor
from torch.hub import get_dir

from hbench.core.images import to_uint8
from hbench.errors import HBenchError
from hbench.evaluation.attributes.heads import predicted_classes
from hbench.evaluation.features import no_code_in_weights
from hbench.store.classifier import Classifier
from hbench.store.records import Nonnegative, Number, Share, ShareOrNone

LPIPS_WEIGHTS = ("weights-vgg16-lpips.pth", "vgg16-397923af.pth")
"""Files of torch-fidelity's LPIPS, in PyTorch's folder of downloaded weights."""
SSIM_WINDOW = 7
"""Width of the windows that structural similarity compares, in pixels; smaller images have smaller ones."""


@dataclass(frozen=True, kw_only=True)
class EditCost:
    """What one edit changes in one image, against the reconstruction, from which it starts."""

    change: Share
    """Mean change of all pixels, as a share of the range."""
    ssim: Number
    """Structural similarity (Wang et al. 2004), mean over windows of 7 pixels: 1 where nothing changes."""
    lpips: Nonnegative
    """Perceptual distance LPIPS (Zhang et al. 2018) with VGG16, 0 where nothing changes; nan without its weights."""
    kept: ShareOrNone
    """Share of factors, such as the digit, whose class stays; nan where no classifier knows the images."""
    change_outside: ShareOrNone
    """Mean change of the pixels outside the mask, as a share of the range; nan without a mask."""


def edit_costs(
    reconstructed: Tensor, edits: Tensor, classifier: Classifier | None = None, mask: Tensor | None = None
) -> list[list[EditCost]]:
    """Return the cost of each edit of each image.

    Args:
        reconstructed: images without an edit, about [-1, 1], [N, C, H, W], on the CPU.
        edits: the edits of each, [N, E, C, H, W].
        classifier: network that knows the images' classes; None where none does.
        mask: True where the edits may change the images, bool [H, W], with a pixel of either kind; None for no mask.
    """
    from skimage.metrics import structural_similarity

    before, after = reconstructed.clamp(-1, 1)[:, None].expand_as(edits), edits.clamp(-1, 1)
    changed = (after - before).abs().mean(2) / 2  # [N, E, H, W]
    outside = changed[..., ~mask].mean(-1) if mask is not None else torch.full(changed.shape[:2], math.nan)
    kept = torch.full(changed.shape[:2], math.nan)
    if classifier:
        classes = [predicted_classes(classifier, each.flatten(0, 1)) for each in (before, after)]
        kept = (classes[0] == classes[1]).double().mean(1).reshape(changed.shape[:2])
    distance = lpips()
    perceived = torch.full(changed.shape[:2], math.nan)
    if distance:
        perceived = distance(before.flatten(0, 1), after.flatten(0, 1)).reshape(changed.shape[:2])
    window = min(SSIM_WINDOW, *(edge - 1 + edge % 2 for edge in edits.shape[-2:]))  # odd
    return [
        [
            EditCost(
                change=changed[i, j].mean().item(),
                ssim=float(
                    structural_similarity(
                        before[i, j].numpy(), after[i, j].numpy(), win_size=window, data_range=2, channel_axis=0
                    )
                ),
                lpips=perceived[i, j].item(),
                kept=kept[i, j].item(),
                change_outside=outside[i, j].item(),
            )
            for j in range(edits.shape[1])
        ]
        for i in range(len(edits))
    ]


def lpips() -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return LPIPS: a function of two sets of images [N, 1 or 3, H, W] in [-1, 1] that returns [N].

    It is torch-fidelity's "lpips-vgg16", on images of their own size. None where its weights are not at hand: nothing
    is downloaded.

    Raises:
        HBenchError: a file holds something else than these weights.
    """
    folder = Path(get_dir()) / "checkpoints"
    if not all((folder / name).is_file() for name in LPIPS_WEIGHTS):
        return None
    from torch_fidelity.sample_similarity_lpips import SampleSimilarityLPIPS

    try:
        with no_code_in_weights():
            network = SampleSimilarityLPIPS("lpips-vgg16", sample_similarity_dtype="uint8")
    except (RuntimeError, KeyError, TypeError, UnpicklingError) as error:
        problem = (str(error).splitlines() or ["damaged"])[0]
        raise HBenchError(
            f"{folder}: {' or '.join(LPIPS_WEIGHTS)} holds no weights of LPIPS ({problem}): "
            "get both again, or remove one"
        ) from error

    @torch.no_grad()
    def distance(first: Tensor, second: Tensor) -> Tensor:
        pairs = zip(to_uint8(first).split(64), to_uint8(second).split(64), strict=True)
        return torch.cat([network(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)).reshape(-1) for a, b in pairs])

    return distance
