"""Differences of class means in h: directions that were told what to find, an upper bound for all the others.

The classes are a classifier's predictions on the model's own samples, and not the labels of a data set: h_t is then
that of the very chains that are edited, no real image has to be inverted, and no data set need be at hand.
"""

import torch
from torch import Tensor

from hbench.core.sampler import BATCH
from hbench.errors import HBenchError
from hbench.evaluation.attributes.heads import attributes_of, predicted_classes
from hbench.evaluation.find.method import Found, Method, Search, sum_over_processes
from hbench.evaluation.sampling import batches_of
from hbench.runtime.distributed import turns
from hbench.runtime.progress import progress
from hbench.store.classifier import Classifier

FEWEST = 5
"""Samples that a class, and the others together, must have for their difference to be a direction."""


def labels(search: Search) -> Found:
    """Find a direction for each class of a classifier: mean h_t of its samples less that of all others.

    A factor of two classes has a single one, from the first to the second. The directions with the most samples on
    their smaller side come first. Cost: a chain a sample.

    Raises:
        HBenchError: there is no classifier, or hardly any class among the samples.
    """
    if search.classifier is None:
        raise HBenchError(
            'the method "labels" needs a classifier of the images, and there is none: train one by the command '
            "classifier, or take another method"
        )
    words = names(search.classifier)
    sums, counts = class_sums(search, search.classifier, len(words))
    n = counts[-1]  # the last row is of all samples
    smaller = torch.minimum(counts[:-1], n - counts[:-1])
    order = smaller.argsort(descending=True, stable=True)
    order = order[smaller[order] >= FEWEST][: search.K]
    if len(order) < 2:
        raise HBenchError(
            f"of {search.samples} samples hardly any has another class than the rest: take more `samples`"
        )
    inside = sums[order] / counts[order][:, None, None, None, None]
    outside = (sums[-1] - sums[order]) / (n - counts[order])[:, None, None, None, None]
    return Found(
        (inside - outside).float(),
        names=[words[i] for i in order.tolist()],
        details={"samples_of_class": counts[order].long().tolist()},
    )


def names(classifier: Classifier) -> list[str]:
    """Return the words of all directions that the classes give, factor by factor."""
    return [each.more for factor in classifier.factors for each in attributes_of(factor)]


def class_sums(search: Search, classifier: Classifier, count: int) -> tuple[Tensor, Tensor]:
    """Return the sums of h_t over the samples of each direction's class, and their numbers; the last is of all samples.

    They are float64 [count + 1, timesteps, C, H, W] and [count + 1], on the CPU.
    """
    shape = (count + 1, len(search.sampler.shift_interval), *search.h_shape)
    sums, counts = torch.zeros(shape, dtype=torch.float64), torch.zeros(count + 1, dtype=torch.float64)
    for batch in progress(turns(batches_of(search.samples, BATCH)), desc="classes of samples", unit="batch"):
        h, x_0 = search.h_and_x_0(batch)
        member = torch.cat([membership(classifier, x_0.cpu().clamp(-1, 1)), torch.ones(len(batch), 1)], 1).double()
        sums += torch.tensordot(member.T, h.cpu().double(), dims=1)
        counts += member.sum(0)
    device = search.sampler.device  # gloo and NCCL each have their own
    if device.type == "cuda":
        return sum_over_processes(sums.to(device)).cpu(), sum_over_processes(counts.to(device)).cpu()
    return sum_over_processes(sums), sum_over_processes(counts)


def membership(classifier: Classifier, images: Tensor) -> Tensor:
    """Return 1 for each direction whose class an image [B, C, H, W] has, else 0: float32 [B, directions]."""
    predicted = predicted_classes(classifier, images)
    columns = []
    for i, factor in enumerate(classifier.factors):
        one_hot = torch.nn.functional.one_hot(predicted[:, i], len(factor.classes))
        columns.append(one_hot[:, 1:] if len(factor.classes) == 2 else one_hot)
    return torch.cat(columns, 1).float()


LABELS = Method(
    title="differences of class means of h, by a classifier",
    source="supervised: an upper bound",
    find=labels,
    samples=1000,
)
