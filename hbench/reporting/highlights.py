"""The most telling numbers of each result, for the head of a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from hbench.config import Paper
from hbench.core.intervals import in_words, median_interval
from hbench.errors import counted
from hbench.evaluation.attributes.result import Attributes
from hbench.evaluation.edited_images import EditedImages
from hbench.evaluation.fid import Fidelity
from hbench.evaluation.mos.score import MosScore
from hbench.evaluation.properties import Properties
from hbench.evaluation.rca import RCA
from hbench.evaluation.vram_sweep import VramSweep
from hbench.reporting.rows import interval, number, published_number


@dataclass(frozen=True)
class Highlight:
    """One telling number, in words."""

    name: str
    value: str
    detail: str
    """Interval, n and what to hold it against."""
    meaning: str
    """Explanation in a few words."""


def rca_highlights(result: RCA, paper: Paper) -> list[Highlight]:
    """Return accuracy and discriminator."""
    n = counted(result.n, "pair")
    theirs = f", paper {published_number(paper.rca)}" if paper.rca is not None else ""
    D = [_bounds(getattr(result, f"D_{kind}_interval")) for kind in ("raw", "shifted")]
    return [
        Highlight(
            "RCA",
            number(result.accuracy),
            f"{interval(result.interval)}, n = {n}, chance {number(result.chance)}{theirs}",
            "share of pairs whose direction the reconstructor recognises",
        ),
        Highlight(
            "D on raw / shifted samples",
            f"{number(result.D_raw)} / {number(result.D_shifted)}",
            f"{' / '.join(D)}, n = {n}, ideal 0.5",
            "output of the discriminator, 0.5 where it cannot tell shifted samples from raw ones",
        ),
    ]


def attribute_highlights(result: Attributes, paper: Paper) -> list[Highlight]:
    """Return how many directions a person sees, with RCA over these."""
    K, n = len(result.directions), counted(result.n, "sample")
    kinds = f"{result.distinct} distinct, {len(result.proposed_names)} named"
    rca = in_words(result.accuracy_visible, result.accuracy_visible_interval)
    return [
        Highlight(
            "Visible directions",
            f"{len(result.visible)} of {K}",
            f"n = {n}" + f"; RCA over these {rca}, of {result.pairs:,} pairs" * bool(result.visible),
            f"directions of which a person sees something: {kinds}",
        ),
    ]


def fidelity_highlights(result: Fidelity, paper: Paper) -> list[Highlight]:
    """Return the distances of raw and shifted samples, and their ratio."""
    both = result.metric == "FID" and paper.fid_raw is not None and paper.fid_shifted is not None
    theirs = f", paper {paper.fid_raw} → {paper.fid_shifted}" if both else ""
    bounds = interval(result.ratio_interval, 2)
    at_infinity = [number(each.infinity) for each in (result.raw, result.shifted) if each.infinity is not None]
    infinite = f", at infinite n {' → '.join(at_infinity)}" if len(at_infinity) == 2 else ""
    return [
        Highlight(
            f"{result.metric}, raw → shifted samples",
            f"{number(result.raw.fd)} → {number(result.shifted.fd)}",
            f"shifted / raw {result.ratio:.2f} {bounds}, n = {result.shifted.n:,} of each kind{infinite}{theirs}",
            "distance between the features of samples and of real images; it is 0 for images of the same distribution",
        )
    ]


def mos_highlights(result: MosScore, paper: Paper) -> list[Highlight]:
    """Return the opinion score of each run that has one, of several with their names."""
    several, assessors = len(result.runs) > 1, counted(result.sheets, "assessor")
    theirs = f", paper {published_number(paper.mos)}" if paper.mos is not None and not several else ""
    found = []
    for run in result.runs:
        if run.mos.mean is None:
            continue
        floor = f", untrained directions {number(run.floor.mean)}" if run.floor.mean is not None else ""
        found.append(
            Highlight(
                f"MOS of {run.run}" if several else "MOS",
                number(run.mos.mean),
                f"{_bounds(run.mos.interval)}, n = {counted(run.mos.n, 'direction')}, {assessors}{floor}{theirs}",
                "share of people's marks that call a direction interpretable",
            )
        )
    return found


def sweep_highlights(result: VramSweep, paper: Paper) -> list[Highlight]:
    """Return the memory of ``node`` from the smallest to the largest M, beside that of plain back-propagation."""
    memory = {
        strategy: {cell.M: cell.memory_mib for cell in result.cells if (cell.strategy, cell.status) == (strategy, "ok")}
        for strategy in ("node", "vanilla")
    }
    found = {strategy: (min(of), max(of)) for strategy, of in memory.items() if of}
    if "node" not in found:
        return []
    values = {name: " → ".join(f"{memory[name][M]:,.0f}" for M in dict.fromkeys(ends)) for name, ends in found.items()}
    Ms = {name: " → ".join(map(str, dict.fromkeys(ends))) for name, ends in found.items()}
    plain = f", plain back-propagation {values['vanilla']} MiB (M = {Ms['vanilla']})" if "vanilla" in found else ""
    device = f", {result.provenance.device}" if result.provenance else ""
    return [
        Highlight(
            "Training memory",
            f"{values['node']} MiB",
            f"M = {Ms['node']}{plain}{device}",
            "memory of back-propagation through M generation steps with the strategy node",
        )
    ]


def edit_highlights(result: EditedImages, paper: Paper) -> list[Highlight]:
    """Return the median PSNR of the reconstructions."""
    bounds = interval(median_interval(result.psnrs), 1)
    return [
        Highlight(
            "Real images reconstructed",
            f"{median(result.psnrs):.1f} dB",
            " ".join(filter(None, [bounds + "," * bool(bounds), f"n = {counted(len(result.psnrs), 'image')}"])),
            "median PSNR after inversion to noise and generation without an edit; more is better",
        )
    ]


def property_highlights(result: Properties, paper: Paper) -> list[Highlight]:
    """Return the distance of the edit along the mean direction."""
    found = result.distance_mean
    return [
        Highlight(
            "Mean direction instead of the own",
            number(found.value[-1]),
            f"{_bounds((found.low[-1], found.high[-1]))}, n = {counted(result.n, 'sample')}",
            "distance between both edits, in sizes of the edit; it is 0 where they are the same",
        )
    ]


def _bounds(found: Sequence[float | None] | None) -> str:
    return interval(found) or "no interval"
