"""The registry of artifacts: name, item of the paper, result class, charts and table rows of each.

Commands, reproduction, report and the README's table read :data:`ARTIFACTS`. A new metric is one file in evaluation/
and one entry here.
"""

from pathlib import Path
from typing import Any

from hbench.config import Data
from hbench.errors import HBenchError, check_type
from hbench.evaluation.ablations import Ablations
from hbench.evaluation.attributes.result import Attributes
from hbench.evaluation.benchmark.result import Benchmark
from hbench.evaluation.classifier import TrainedClassifier
from hbench.evaluation.curves import TrainingCurves
from hbench.evaluation.edited_images import EditedImages
from hbench.evaluation.fid import Fidelity
from hbench.evaluation.gradient import Gradients
from hbench.evaluation.mos.score import MosScore
from hbench.evaluation.plan import Plan
from hbench.evaluation.properties import Properties
from hbench.evaluation.quality import Quality
from hbench.evaluation.rca import RCA
from hbench.evaluation.run_comparison import RunComparison
from hbench.evaluation.sample import Samples
from hbench.evaluation.traverse import Traversal
from hbench.evaluation.vram_sweep import VramSweep
from hbench.reporting.artifact import Artifact, Chart
from hbench.reporting.charts.attributes import draw_attributes, draw_curves
from hbench.reporting.charts.benchmark import draw_benchmark, draw_methods
from hbench.reporting.charts.classifier import draw_classifier
from hbench.reporting.charts.compare import draw_comparison
from hbench.reporting.charts.gradient import draw_gradients
from hbench.reporting.charts.measurements import draw_confusion, draw_fidelity, draw_properties
from hbench.reporting.charts.mos import draw_mos
from hbench.reporting.charts.quality import draw_beside, draw_quality
from hbench.reporting.charts.sweep import draw_plan, draw_sweep
from hbench.reporting.charts.training import draw_ablations, draw_run_curves
from hbench.reporting.grids import draw_edits, draw_samples, draw_sources, draw_strip, draw_traversal, draw_variants
from hbench.reporting.highlights import (
    attribute_highlights,
    edit_highlights,
    fidelity_highlights,
    mos_highlights,
    property_highlights,
    rca_highlights,
    sweep_highlights,
)
from hbench.reporting.rows import (
    ablation_rows,
    attribute_rows,
    benchmark_rows,
    classifier_rows,
    comparison_rows,
    curve_rows,
    edit_rows,
    fidelity_rows,
    gradient_rows,
    mos_rows,
    named_directions,
    no_rows,
    property_rows,
    published_number,
    quality_rows,
    rca_rows,
    sweep_rows,
    trainings,
    variants,
)
from hbench.store.classifier import are_digits, shipped_classifier
from hbench.store.registry import factors_of
from hbench.store.results import Result

VARIANT_PICTURES: dict[str, Chart] = {"ablations.png": draw_ablations, "directions.png": draw_variants}
VARIANTS_SEEN = {
    "ablations.png": (
        "Bars, one row a variant: RCA, FD, what a person sees, share outside the domain, D. Dots are trainings."
    ),
    "directions.png": "Image grids along the best recognised directions of each variant.",
}
SAMPLES_SEEN = {
    "fid.png": (
        "Bars of the distance for raw and for shifted samples with 95 % intervals; beside them raw samples, and "
        "the same samples shifted."
    ),
}


def needs_classifier(data: Data) -> tuple[str, str] | None:
    """Return folder and command of the classifier that images need; None where a shipped one knows them."""
    return None if shipped_classifier(data) else ("classifier", "classifier {experiment}{data}")


def _distance(
    extractor: str, title: str, meaning: str, *, command: str = "", in_paper: bool = True, **special: Any
) -> Artifact:
    """Return the artifact of ``hbench fid`` with an extractor: what its distance means, and what is special of it."""
    comparable = "" if extractor == "inception-v3-compat" else " and comparable with no FID"
    return Artifact(
        f"fid-{extractor}",
        Fidelity,
        title,
        "Table 2" if in_paper else "",
        command or f"fid --feature-extractor {extractor}",
        fidelity_rows,
        {"fid.png": draw_fidelity},
        of_run=True,
        caption=(
            f"{meaning} of samples and of real images, 0 for the same distribution{comparable}; raw samples have no "
            "direction added, shifted ones a random direction, and KID is another distance of the same features, "
            "without bias for few samples."
        ),
        seen=SAMPLES_SEEN,
        highlights=fidelity_highlights,
        **special,
    )


ARTIFACTS = (
    Artifact(
        "traverse",
        Traversal,
        "Directions",
        "Figs. 1, 5-7",
        "traverse",
        no_rows,
        {"directions.png": draw_traversal},
        named=named_directions,
        of_run=True,
        caption=(
            "Each panel is one direction: a row starts from one noise x_T, s is the strength of the shift, and "
            "the number in brackets is the share of pairs in which the reconstructor, a network that sees a raw "
            "and a shifted sample, recognises the direction."
        ),
        seen={
            "directions.png": (
                "Image grids, one panel a direction, best recognised first and those that nobody sees last and faint; "
                "the strength grows from left to right."
            ),
        },
    ),
    Artifact(
        "rca",
        RCA,
        "Reconstructor classification accuracy",
        "Table 1",
        "rca",
        rca_rows,
        {"rca.png": draw_confusion},
        published=lambda paper: published_number(paper.rca),
        of_run=True,
        caption=(
            "RCA is the share of fresh pairs, a raw sample and the same one shifted, whose direction the "
            "reconstructor names correctly; s_hat is its estimate of the strength s, D the output of the "
            "discriminator, 0.5 where it cannot tell shifted samples from raw ones, a sample is outside the domain "
            "if a pixel lies beyond 1.5, where images span -1 to 1, and a direction is visible if a person sees "
            "something change between both ends."
        ),
        seen={
            "rca.png": (
                "Left a heat map of predicted against true direction, best recognised first; right a bar a "
                "direction with its accuracy, its 95 % interval, and chance; invisible directions last and in grey."
            ),
        },
        highlights=rca_highlights,
    ),
    Artifact(
        "attributes",
        Attributes,
        "What directions do",
        "",
        "attributes",
        attribute_rows,
        {"attributes.png": draw_attributes, "strip.png": draw_strip, "curves.png": draw_curves},
        of_run=True,
        caption=(
            "A direction is visible if the patch of the image, a fifth of its height, that changes most between both "
            "ends changes by more than 0.2 of the range in three of four samples; effects are in standard deviations "
            "of the attribute over raw samples, and the leading attribute is the one with the largest effect that "
            "nearly all samples share."
        ),
        seen={
            "attributes.png": (
                "Left one sample along each direction, a row a direction, clusters of visible ones first and invisible "
                "ones set apart below; right a heat map of the direction's effects on each attribute, and its proposed "
                "name."
            ),
            "strip.png": (
                "Samples, a row each: the original, then both signs of up to three directions, at the largest strength "
                "at which most samples keep their classes."
            ),
            "curves.png": (
                "Line charts over the strength: the leading attribute of the best directions, and the share of samples "
                "that keep their classes; beside them, dots of that share against the effect, one a direction."
            ),
        },
        highlights=attribute_highlights,
    ),
    Artifact(
        "compare",
        RunComparison,
        "Compared with other runs",
        "",
        "compare",
        comparison_rows,
        {"compare.png": draw_comparison},
        of_run=True,
        arguments="{run} RUN...",
        caption=(
            "Runs measured alike: on the same pairs where they have the same diffusion model, K and magnitudes; a "
            "difference is certain if its p is below 0.05 after Holm's correction for all of them, and numbers that do "
            "not compare, such as RCAs of different K, are not compared."
        ),
        seen={
            "compare.png": (
                "A panel a metric, a row a run, with 95 % intervals; arrows in the titles point to the better end, and "
                "certain differences to the first run are in colour, with a word."
            ),
        },
    ),
    Artifact(
        "benchmark",
        Benchmark,
        "Other methods",
        "",
        "benchmark",
        benchmark_rows,
        {"benchmark.png": draw_benchmark, "methods.png": draw_methods},
        caption=(
            "Methods that find directions on the same diffusion model, searches at the same visible change; a fresh "
            "reconstructor of the same budget tells each one's directions apart, precision is the share of shifted "
            "samples that lie among the model's raw ones, and recall the reverse."
        ),
        seen={
            "benchmark.png": "Dots with intervals: a panel for each number, a row for each method.",
            "methods.png": (
                "Image grids of the most visible directions of each method, a row of grids a method, all from the same "
                "noise, with proposed names."
            ),
        },
    ),
    Artifact(
        "mos/score",
        MosScore,
        "Mean opinion score",
        "Table 1",
        "mos score",
        mos_rows,
        {"mos.png": draw_mos},
        arguments="MARKS.csv... --key {mos}/key.json",
        needs=lambda _: ("mos", "mos export {run}"),
        published=lambda paper: published_number(paper.mos),
        caption=(
            "MOS is the share of people's marks that call a direction interpretable, averaged over the "
            "directions; directions of an untrained network on the same blind sheets give the floor."
        ),
        seen={"mos.png": "Bars, one a direction, with the share of its marks that are 1 and the 95 % interval."},
        highlights=mos_highlights,
    ),
    _distance(
        "inception-v3-compat",
        "Fréchet inception distance",
        "FID is the Fréchet distance between Inception's features",
        command="fid",
        published=lambda paper: f"{paper.fid_raw} raw, {paper.fid_shifted} shifted" if paper.fid_raw else "",
        arguments="{run}{data}",
        suits=lambda data: not factors_of(data),
    ),
    _distance(
        "random-resnet18",
        "Fréchet distance in random features",
        "FD is the Fréchet distance between the features that an untrained ResNet-18 has",
        in_paper=False,
        arguments="{run}{data}",
        suits=lambda data: not factors_of(data),
    ),
    _distance(
        "lenet-digits",
        "Fréchet distance in LeNet features",
        "FD is the Fréchet distance between a digit classifier's features",
        needs=needs_classifier,
        suits=are_digits,
    ),
    _distance(
        "classifier",
        "Fréchet distance in classifier features",
        "FD is the Fréchet distance between a classifier's features",
        needs=needs_classifier,
        suits=lambda data: bool(factors_of(data)) and not are_digits(data),
    ),
    Artifact(
        "quality",
        Quality,
        "Samples of the diffusion model against the data",
        "",
        "quality",
        quality_rows,
        {"quality.png": draw_quality, "beside.png": draw_beside},
        of_run=True,
        arguments="{run}{data}",
        caption=(
            "How near samples without directions come to real images, for several numbers M of generation steps: FD is "
            "the Fréchet distance in features, precision the share of samples that lie among the real images, recall "
            "the share of real images among the samples; the floor is what real images have in the samples' place, and "
            "very near a training image is what as few as 1 % of the test images are."
        ),
        seen={
            "quality.png": (
                "Charts over M: the distance with its floor, precision and recall with those of real images, and the "
                "distances to the nearest training images beside those of test images; below, bars of the share of "
                "each class among the samples, with a dot for real images."
            ),
            "beside.png": (
                "Grids of the first samples and of real images; below, the first samples and those that are nearest, "
                "each above its nearest training image."
            ),
        },
    ),
    Artifact(
        "train-curves",
        TrainingCurves,
        "Training",
        "Fig. 10",
        "train-curves",
        curve_rows,
        {"train-curves.png": draw_run_curves},
        published=lambda _: "D near 0.5",
        caption=(
            "D is the discriminator's output on raw and on shifted samples in training, 0.5 where it cannot tell "
            "them apart; the other panels are the reconstructor's accuracy on the training's own pairs and the "
            "losses, and the table has means over the last third of the steps."
        ),
        seen={
            "train-curves.png": (
                "Six line charts over training steps: D, accuracy, the losses of k, of s, of fidelity and of D."
            ),
        },
    ),
    Artifact(
        "vram-sweep",
        VramSweep,
        "Memory and throughput of training",
        "Fig. 4",
        "vram-sweep",
        sweep_rows,
        {"vram-sweep.png": draw_sweep},
        published=lambda _: "node flat, vanilla past 24 GB",
        caption=(
            "Memory and speed of a training step against M, the number of generation steps that the gradient "
            "passes through: vanilla keeps the graphs of all steps, node computes one at a time anew, "
            "torch-checkpoint is PyTorch's recomputation of each step."
        ),
        seen={
            "vram-sweep.png": (
                "Two line charts over M, one line a strategy: memory in MiB on the left, pairs a second on the right."
            ),
        },
        highlights=sweep_highlights,
        arguments="{experiment}",
        of_experiment=True,
    ),
    Artifact(
        "edit",
        EditedImages,
        "Edits of real images",
        "Fig. 8",
        "edit",
        edit_rows,
        {"edits.png": draw_edits},
        arguments="{run} IMAGE... --shift K=S",
        of_run=True,
        caption=(
            "Real images are inverted to noise by DDIM and generated again, without an edit (the reconstruction) "
            "and along directions; PSNR is the agreement of reconstruction and original in decibels, more is "
            "better."
        ),
        seen={"edits.png": "Rows of images: a real one, its reconstruction with its PSNR, and its edits."},
        highlights=edit_highlights,
    ),
    Artifact(
        "properties",
        Properties,
        "Own, mean and time-invariant directions",
        "Fig. 9",
        "properties",
        property_rows,
        {"properties.png": draw_properties, "edits.png": draw_sources},
        of_run=True,
        caption=(
            "Three sources of the shift compared: a sample's own direction, the mean over other samples, and the "
            "time-invariant mean over timesteps too; homogeneity is the cosine of own and mean direction, "
            "consistency that between timesteps, and linearity holds the reconstructor's estimate s_hat against "
            "the strength s."
        ),
        seen={
            "properties.png": (
                "Four charts: homogeneity over the timestep, a heat map of consistency between timesteps, the "
                "distance of mean and time-invariant edits for each direction, and s_hat against s."
            ),
            "edits.png": "Rows of images, each edited with the own, the mean and the time-invariant direction.",
        },
        highlights=property_highlights,
    ),
    Artifact(
        "ablations",
        Ablations,
        "Ablations",
        "Fig. 3, Sec. 4.4",
        "ablations",
        ablation_rows,
        VARIANT_PICTURES,
        comparison=variants,
        caption=(
            "Short trainings that differ in one thing: full is hbench's default, l1 has the abandoned L1 loss in "
            "the discriminator's place, none has neither, and per-step takes the gradient of single steps instead "
            "of the whole chain; chance is the RCA of guessing, and outside the domain are samples with a pixel "
            "beyond 1.5."
        ),
        seen=VARIANTS_SEEN,
        arguments="{variants} --model {run}",
        of_experiment=True,
    ),
    Artifact(
        "settings",
        Ablations,
        "What the settings do",
        "",
        "ablations --over",
        no_rows,
        VARIANT_PICTURES,
        comparison=variants,
        caption=(
            "Short trainings that differ in one setting from the first, which is the experiment as it is; chance "
            "is the RCA of guessing, and outside the domain are samples with a pixel beyond 1.5."
        ),
        seen=VARIANTS_SEEN,
        arguments="KEY=VALUE,... {variants} --model {run}",
        of_experiment=True,
    ),
    Artifact(
        "gradient",
        Gradients,
        "Cheap gradients",
        "",
        "gradient",
        gradient_rows,
        {"gradient.png": draw_gradients},
        comparison=trainings,
        caption=(
            "The exact gradient goes through the whole chain; linear drops the network's Jacobian, truncated all but "
            "the last steps, one-step all but one step, and per-step everything between steps; cosine and norm are "
            "those of the shift block's gradient at each timestep, and each was then trained for the same time."
        ),
        seen={
            "gradient.png": (
                "Lines with bands over the shifted timesteps, at the start, middle and end of a training: cosines "
                "above, ratios of norms below; beneath, bars of what trainings of equal time come to, one row a "
                "gradient."
            ),
        },
        arguments="{experiment} --model {run}",
        of_experiment=True,
    ),
    Artifact(
        "sample",
        Samples,
        "Samples of the diffusion model",
        "",
        "sample",
        no_rows,
        {"samples.png": draw_samples},
        on_page=False,
    ),
    Artifact(
        "classifier",
        TrainedClassifier,
        "Classifier of the images",
        "",
        "classifier",
        classifier_rows,
        {"classifier.png": draw_classifier},
        caption=(
            "The classifier, which gives the features of the distances, learned the labels of the training images; its "
            "accuracy on test images stands beside the share of the most frequent class, the accuracy of naming that "
            "class always."
        ),
        seen={
            "classifier.png": (
                "Bars, one a factor, with the accuracy, its 95 % interval and a mark at the share of the most frequent "
                "class; for a single factor a heat map of predicted against true class."
            ),
        },
        arguments="{experiment}{data}",
        of_experiment=True,
        suits=lambda data: bool(factors_of(data)),
    ),
    Artifact(
        "plan",
        Plan,
        "Prediction of memory and throughput",
        "",
        "plan",
        no_rows,
        {"plan.png": draw_plan},
        arguments="{experiment}",
        of_experiment=True,
        on_page=False,
    ),
)
"""Artifacts in the order of the page."""


def artifact_of(result: Result) -> Artifact | None:
    """Return the registered artifact of a result's class, the first if there are several."""
    return next((artifact for artifact in ARTIFACTS if artifact.result is type(result)), None)


def draw(result: Result, folder: Path) -> list[Path]:
    """Draw every picture of a result into a folder and return their paths."""
    artifact = artifact_of(result)
    if artifact is None:
        return []
    for name, chart in artifact.charts.items():
        chart(result, folder / name)
    return [folder / name for name in artifact.charts]


def plot(result: Result, path: str | Path) -> Path:
    """Draw the main picture of a result as a PNG file and return its path.

    Raises:
        TypeError: not a result.
        HBenchError: no picture is registered for such a result, or the file cannot be written.
    """
    check_type(Result, "as a measurement returns it", result=result)
    artifact = artifact_of(result)
    if artifact is None or not artifact.charts:
        raise HBenchError(f"no picture is registered for a {type(result).__name__}")
    next(iter(artifact.charts.values()))(result, Path(path))
    return Path(path)
