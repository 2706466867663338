"""What holds for all charts: legends off the curves, no white space around, one style, words that are no smaller."""

import sys
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from committed import RESULTS, V01
from PIL import Image

from hbench.evaluation.curves import train_curves
from hbench.evaluation.plan import Plan
from hbench.evaluation.rca import RCA
from hbench.evaluation.vram_sweep import VramSweep
from hbench.reporting.artifacts import ARTIFACTS
from hbench.reporting.charts import figure
from hbench.reporting.charts.sweep import draw_plan, draw_sweep
from hbench.reporting.charts.training import draw_growth, draw_run_curves

CHARTS = {
    artifact.folder: next(iter(artifact.charts.values()))
    for artifact in ARTIFACTS
    if artifact.folder in ("rca", "vram-sweep", "properties", "ablations")
}
"""Charts that need no more than the numbers of a committed result."""


def loaded(name):
    (artifact,) = (each for each in ARTIFACTS if each.folder == name)
    return artifact.result.load(V01 / name)


def sweep_of_one_M():
    result = VramSweep.load(V01 / "vram-sweep")
    out_of_memory = {"status": "oom", "memory_mib": None, "step_seconds": ()}
    cells = [replace(c, **out_of_memory) if c.strategy == "vanilla" else c for c in result.cells if c.M == 10]
    return replace(result, cells=cells)


def plan_of_one_M():
    result = Plan.load(RESULTS / "bench" / "plan")
    M = result.predictions[0].M
    return replace(result, predictions=[each for each in result.predictions if each.M == M])


DRAWN = {
    **{name: lambda path, name=name: CHARTS[name](loaded(name), path) for name in CHARTS},
    "one M": lambda path: draw_sweep(sweep_of_one_M(), path),
    "plan": lambda path: draw_plan(Plan.load(RESULTS / "bench" / "plan"), path),
    "plan of one M": lambda path: draw_plan(plan_of_one_M(), path),
    "one training": lambda path: draw_run_curves(train_curves([V01]), path),
    "two trainings": lambda path: draw_run_curves(train_curves([V01, V01 / "m20" / "train"]), path),
    "growth": lambda path: draw_growth([(step, RCA.load(V01 / "rca")) for step in (1, 2)], path),
}


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved while the test runs."""
    kept, save = [], figure.save_figure

    def keep(drawn, path):
        kept.append(drawn)
        save(drawn, path)

    for name, module in list(sys.modules.items()):
        if name.startswith("hbench.reporting") and hasattr(module, "save_figure"):
            monkeypatch.setattr(module, "save_figure", keep)
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWN)
def test_legends_cover_no_panel_and_no_white_space_is_around(name, figures, tmp_path):
    DRAWN[name](tmp_path / "x.png")
    (drawn,) = figures
    panels = [axis.get_window_extent() for axis in drawn.axes if axis.axison]
    legends = [legend for axis in drawn.axes if (legend := axis.get_legend())] + drawn.legends
    for legend in legends:
        assert not any(legend.get_window_extent().overlaps(panel) for panel in panels)
    with Image.open(tmp_path / "x.png") as picture:
        ink = np.argwhere(np.asarray(picture.convert("L")) < 250)
        (top, left), (bottom, right) = ink.min(0), ink.max(0)
        assert max(top, left, picture.height - 1 - bottom, picture.width - 1 - right) <= 20  # pixels, of 1,300
        assert picture.getpixel((0, 0))[:3] == (255, 255, 255)
    words = [text for text in drawn.findobj(mpl.text.Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in words) >= 8  # points


@pytest.mark.parametrize(("draw", "result"), [(draw_sweep, sweep_of_one_M), (draw_plan, plan_of_one_M)])
def test_one_M_has_a_bar_for_each_strategy_with_its_number(draw, result, figures, tmp_path):
    found = result()
    draw(found, tmp_path / "x.png")
    rows = found.cells if draw is draw_sweep else found.predictions
    for axis in figures[0].axes:
        assert [label.get_text() for label in axis.get_xticklabels()] == [row.strategy for row in rows]
        measured = [row for row in rows if row.memory_mib is not None]
        assert len(axis.patches) == len(measured)
        assert axis.get_xlabel().startswith("M = 10 generation steps")
    numbers = [text.get_text() for text in figures[0].axes[0].texts]
    assert numbers == [f"{row.memory_mib:,.0f}" for row in measured]


def test_charts_look_the_same_whatever_the_caller_has_set(tmp_path):
    result = loaded("rca")
    before = dict(mpl.rcParams)
    CHARTS["rca"](result, tmp_path / "a.png")
    assert dict(mpl.rcParams) == before
    with mpl.rc_context({"figure.facecolor": "black", "font.size": 30, "axes.facecolor": "black"}):
        CHARTS["rca"](result, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_colours_of_curves_stand_out_from_white():
    def luminance(color):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mpl.colors.to_rgb(color)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert len(set(figure.COLORS)) == 8
    assert all(1.05 / (luminance(color) + 0.05) > 2 for color in figure.COLORS)
