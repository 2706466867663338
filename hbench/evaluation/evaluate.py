"""All measurements: ``hbench.evaluate.rca(run, pairs=1000)`` and its siblings, each of which returns a result.

A result has ``summary()``, ``table()``, ``save(folder)`` and ``load(folder)``; ``hbench.plot(result, path)`` draws it.
Measurements are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hbench.evaluation.ablations import Ablations as Ablations
    from hbench.evaluation.ablations import ablations as ablations
    from hbench.evaluation.attributes.attributes import attributes as attributes
    from hbench.evaluation.attributes.result import Attributes as Attributes
    from hbench.evaluation.benchmark.benchmark import benchmark as benchmark
    from hbench.evaluation.benchmark.result import Benchmark as Benchmark
    from hbench.evaluation.classifier import TrainedClassifier as TrainedClassifier
    from hbench.evaluation.classifier import classifier as classifier
    from hbench.evaluation.compare import compare as compare
    from hbench.evaluation.curves import TrainingCurves as TrainingCurves
    from hbench.evaluation.curves import train_curves as train_curves
    from hbench.evaluation.edit import edit as edit
    from hbench.evaluation.edited_images import EditedImages as EditedImages
    from hbench.evaluation.fid import Fidelity as Fidelity
    from hbench.evaluation.fid import fid as fid
    from hbench.evaluation.gradient import Gradients as Gradients
    from hbench.evaluation.gradient import gradient as gradient
    from hbench.evaluation.mos.score import MosScore as MosScore
    from hbench.evaluation.mos.score import mos_score as mos_score
    from hbench.evaluation.mos.study import Study as Study
    from hbench.evaluation.mos.study import mos_study as mos_study
    from hbench.evaluation.plan import Plan as Plan
    from hbench.evaluation.plan import plan as plan
    from hbench.evaluation.properties import Properties as Properties
    from hbench.evaluation.properties import properties as properties
    from hbench.evaluation.quality import Quality as Quality
    from hbench.evaluation.quality import quality as quality
    from hbench.evaluation.rca import RCA as RCA
    from hbench.evaluation.rca import rca as rca
    from hbench.evaluation.run_comparison import RunComparison as RunComparison
    from hbench.evaluation.sample import Samples as Samples
    from hbench.evaluation.sample import sample as sample
    from hbench.evaluation.traverse import Traversal as Traversal
    from hbench.evaluation.traverse import traverse as traverse
    from hbench.evaluation.vram_sweep import VramSweep as VramSweep
    from hbench.evaluation.vram_sweep import vram_sweep as vram_sweep

_HOME = {
    "rca": "hbench.evaluation.rca",
    "RCA": "hbench.evaluation.rca",
    "attributes": "hbench.evaluation.attributes.attributes",
    "Attributes": "hbench.evaluation.attributes.result",
    "benchmark": "hbench.evaluation.benchmark.benchmark",
    "Benchmark": "hbench.evaluation.benchmark.result",
    "compare": "hbench.evaluation.compare",
    "RunComparison": "hbench.evaluation.run_comparison",
    "traverse": "hbench.evaluation.traverse",
    "Traversal": "hbench.evaluation.traverse",
    "properties": "hbench.evaluation.properties",
    "Properties": "hbench.evaluation.properties",
    "edit": "hbench.evaluation.edit",
    "EditedImages": "hbench.evaluation.edited_images",
    "fid": "hbench.evaluation.fid",
    "Fidelity": "hbench.evaluation.fid",
    "train_curves": "hbench.evaluation.curves",
    "TrainingCurves": "hbench.evaluation.curves",
    "ablations": "hbench.evaluation.ablations",
    "Ablations": "hbench.evaluation.ablations",
    "gradient": "hbench.evaluation.gradient",
    "Gradients": "hbench.evaluation.gradient",
    "sample": "hbench.evaluation.sample",
    "Samples": "hbench.evaluation.sample",
    "quality": "hbench.evaluation.quality",
    "Quality": "hbench.evaluation.quality",
    "classifier": "hbench.evaluation.classifier",
    "TrainedClassifier": "hbench.evaluation.classifier",
    "mos_study": "hbench.evaluation.mos.study",
    "Study": "hbench.evaluation.mos.study",
    "mos_score": "hbench.evaluation.mos.score",
    "MosScore": "hbench.evaluation.mos.score",
    "vram_sweep": "hbench.evaluation.vram_sweep",
    "VramSweep": "hbench.evaluation.vram_sweep",
    "plan": "hbench.evaluation.plan",
    "Plan": "hbench.evaluation.plan",
}
"""Modules of the public names, in the order of docs/api.md."""

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hbench.evaluate' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(_HOME)
