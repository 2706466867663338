"""Samples of a diffusion model, without directions."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from hbench.config import Experiment
from hbench.core.backbone import DiffusionModel
from hbench.core.domain import Look, look
from hbench.core.sampler import Sampler
from hbench.errors import check_at_least
from hbench.evaluation.sampling import sample_model
from hbench.runtime.device import pick_device
from hbench.store.provenance import provenance
from hbench.store.records import Aside
from hbench.store.results import Result

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, kw_only=True)
class Samples(Result):
    """Samples of a diffusion model."""

    NAME: ClassVar[str] = "samples"
    SCHEMA: ClassVar[int] = 2

    n: int
    """Number of samples."""
    M: int
    """Number of generation steps."""
    outside: float | None
    """Share of samples with a pixel beyond +-1.5; none of a good model. None in files of older versions."""
    neighbours: float | None
    """Mean correlation of neighbouring pixels, 0 for noise; None in files of older versions."""
    images: Aside = field(default=None, compare=False, repr=False)
    """Samples in about [-1, 1], unclamped: float32 [n, C, H, W], on the CPU; None in a result read back."""

    @classmethod
    def upgrade(cls, values: dict[str, Any], schema: int) -> dict[str, Any]:
        """Return the values of an older form in today's; the first ones do not look at the samples."""
        return {"outside": None, "neighbours": None} | values

    def cautions(self) -> list[str]:
        """Return why the samples are rather noise than images."""
        return seen.doubts() if (seen := self._look()) else []

    def summary(self) -> str:
        """Return number of samples and steps, and what tells them from noise, in one line."""
        seen = self._look()
        return f"{self.n} samples in {self.M} steps" + (f", {seen.summary()}" if seen else "")

    def table(self) -> "DataFrame":
        """Return number of samples and steps, and what tells them from noise, in one row."""
        import pandas as pd

        return pd.DataFrame([{"n": self.n, "M": self.M, "outside": self.outside, "neighbours": self.neighbours}])

    def _look(self) -> Look | None:
        return None if self.outside is None or self.neighbours is None else Look(self.outside, self.neighbours)


def sample(
    model: DiffusionModel,
    experiment: Experiment,
    *,
    samples: int = 64,
    steps: int = 20,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> Samples:
    """Generate samples of a diffusion model.

    Several processes make them together, and each gets all. Cost: ``steps`` passes of the model a sample.

    Args:
        model: diffusion model; it is moved to the device.
        experiment: experiment with the model's settings.
        samples: number of samples, at least 1.
        steps: number of generation steps M, 1..T.
        seed: seed of x_T.
        device: device that generates them: "auto" is CUDA where there is one, else the CPU.

    Raises:
        ValueError: no sample, or steps out of range.
    """
    check_at_least(1, samples=samples)
    device = pick_device(device)
    sampler = Sampler.of(experiment, model.to(device), device, M=steps, precision=experiment.pretrain.precision)
    origin = provenance(experiment, device, seed, n=samples, M=steps)
    images = sample_model(sampler, samples, seed)
    seen = look(images)
    return Samples(
        n=samples,
        M=steps,
        outside=seen.outside,
        neighbours=seen.neighbours,
        images=images,
        provenance=origin.finished(),
    )
