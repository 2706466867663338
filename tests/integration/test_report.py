import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import median
from urllib.parse import unquote

import pytest
from command_line import changed, invoke
from committed import V01

from hbench.config import Paper
from hbench.errors import HBenchError, counted
from hbench.evaluation.curves import TrainingCurves
from hbench.evaluation.fid import Fidelity
from hbench.evaluation.mos.score import Estimate, MosScore, RunScore
from hbench.evaluation.vram_sweep import VramSweep
from hbench.reporting.artifacts import ARTIFACTS
from hbench.reporting.highlights import fidelity_highlights, mos_highlights, sweep_highlights
from hbench.reporting.report import REASONS, collect, distinct_names, head, redraw, write_pages
from hbench.reporting.rows import curve_rows, fidelity_rows
from hbench.store.provenance import FILE as PROVENANCE


def test_the_page_holds_every_number_and_picture(results, tmp_path):
    report = collect(results)
    write_pages([report], tmp_path)
    page = (tmp_path / "report.html").read_text()
    found = json.loads((results / "rca" / "rca.json").read_text())
    assert f"<td>{found['accuracy']:.3f}</td>" in page
    assert f"[{found['interval'][0]:.3f}, {found['interval'][1]:.3f}]" in page
    assert "8 pairs" in page
    assert page.count("data:image/png;base64,") == 2
    assert all(row.n and row.interval for row in report.rows if row.ran)
    assert not re.search(r'(src|href)="(?!data:|#|https://arxiv\.org/abs/2310\.09912")', page)  # needs no other file
    rows = {row.artifact: row for row in report.rows}
    assert rows["Mean opinion score"].ours.startswith("not run:")
    assert not rows["Mean opinion score"].ran


def test_a_page_of_sliders_beside_the_results_is_linked(results, tmp_path):
    folder = tmp_path / "my run"
    shutil.copytree(results, folder)
    (folder / "explore").mkdir()
    (folder / "explore" / "explore.html").touch()
    for out in (folder, tmp_path):
        write_pages([collect(folder)], out)
        (link,) = re.findall(r'href="([^"]*explore\.html)"', (out / "report.html").read_text())
        assert (out / unquote(link)).is_file()


def test_reasons_stand_in_the_table(results, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(results, folder)
    (folder / REASONS).write_text(json.dumps({"edit": "no data: pass --data-root"}))
    rows = {row.artifact: row for row in collect(folder).rows}
    assert rows["Edits of real images"].ours == "not run: no data: pass --data-root"


def test_a_named_direction_that_was_never_drawn(results, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(results, folder)
    file = folder / "traverse" / "traverse.json"
    values = json.loads(file.read_text())
    values["directions"] = [{"direction": 1, "name": "![x](http://x) bold", "accuracy": None}]
    changed(file, values)
    write_pages([collect(folder)], tmp_path)
    assert "<td>![x](http://x) bold</td>" in (tmp_path / "report.html").read_text()
    assert r"| 1 | ![x]\(http://x) bold | not defined |" in (tmp_path / "report.md").read_text()
    changed(file, values | {"directions": [{"direction": "<b>", "name": "x", "accuracy": 1}]})
    with pytest.raises(HBenchError, match=r"traverse\.json: is no traverse result as hbench 0\.[12] writes it"):
        collect(folder)


def test_a_scored_mos_is_in_the_table(results, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(results, folder)
    (folder / "mos" / "score").mkdir(parents=True)
    shutil.copy(folder / "rca" / "provenance.json", folder / "mos" / "score")
    estimate = {"mean": 0.5, "interval": [0.25, 0.75], "n": 3}
    none = {"mean": None, "interval": None, "n": 0}
    run = {"run": "run", "title": "x", "mos": estimate, "floor": none, "marks": 3}
    direction = {"run": "run", "direction": 0, "control": False, "names": {"bold": 2}}
    score = {
        "runs": [run],
        "directions": [direction | {"mean": 0.5, "interval": [0.25, 0.75], "votes": 3}],
        "alpha": None,
        "self_agreement": none,
        "self_agreement_by_assessor": {},
        "sheets": 3,
        "sheets_made": 3,
        "seed": 0,
    }
    changed(folder / "mos" / "score" / "mos.json", score)
    rows = {row.artifact: row for row in collect(folder).rows}
    assert (rows["MOS"].ours, rows["MOS"].interval, rows["MOS"].n) == ("0.500", "[0.250, 0.750]", "3 directions")


def test_what_is_not_defined_is_said_so(results, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(results, folder)
    values = json.loads((folder / "rca" / "rca.json").read_text()) | {"D_raw": None, "D_raw_interval": [None, None]}
    changed(folder / "rca" / "rca.json", values)
    rows = {row.artifact: row for row in collect(folder).rows}
    assert (rows["D on raw samples"].ours, rows["D on raw samples"].interval) == ("not defined", "")


def test_results_of_different_weights_are_not_one_page(results, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(results, folder)
    file = folder / "traverse" / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights_sha256": {"model": "0"}}))
    with pytest.raises(HBenchError, match=r"^traverse: of other weights than those in"):
        collect(folder)
    alone = tmp_path / "results"
    for name in ("rca", "traverse"):
        shutil.copytree(folder / name, alone / name)
    with pytest.raises(HBenchError, match="traverse, rca are of different weights"):
        collect(alone)


def test_results_of_another_version_are_named(results, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(results, folder)
    values = json.loads((folder / "rca" / "rca.json").read_text())
    del values["D_raw_interval"]
    changed(folder / "rca" / "rca.json", values)
    with pytest.raises(HBenchError, match=r"rca.json: is no rca result as hbench 0\.[12] writes it .* make it again"):
        collect(folder)


def test_untrusted_text_is_escaped(results, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(results, folder)
    (folder / REASONS).write_text(json.dumps({"edit": "<script>alert(1)</script> | x"}))
    write_pages([collect(folder)], tmp_path)
    assert "<script>" not in (tmp_path / "report.html").read_text()
    assert "\\| x" in (tmp_path / "report.md").read_text()


def test_markdown_links_exist(results):
    assert invoke("report", results).exit_code == 0
    text = (results / "report.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == 4
    assert all((results / link).is_file() for link in links)


def test_one_table_of_all_experiments(results, tmp_path):
    folder, summary = tmp_path / "results" / "run", tmp_path / "results" / "README.md"
    shutil.copytree(results, folder)
    (folder / "names.txt").write_text("2: bold | <i>\n")
    assert invoke("traverse", folder, "--pairs", 8, "--examples", 1, "--quiet", "--overwrite").exit_code == 0
    command = ["report", folder, "--summary", summary, "--not-run", "mnist32", "no GPU"]
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    text = summary.read_text()
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()]
    rows = [line for line in lines if line[-1].startswith("[provenance]")]
    found = json.loads((folder / "rca" / "rca.json").read_text())
    (ours,) = [row for row in rows if row[1].startswith("RCA")]
    assert ours[3] == f"{found['accuracy']:.3f}"
    assert ours[6] == "[provenance](run/rca/provenance.json)"
    assert all(all(row) for row in rows if row[3] != "not defined")
    assert all((summary.parent / link).exists() for link in re.findall(r"\]\(([^)]+)\)", text))
    (theirs,) = [row for row in lines if row[:2] == ["MNIST32-400-20-32-5", "Reconstructor classification accuracy"]]
    assert theirs[2:] == ["Table 1", "0.77", "no GPU"]
    accuracy = found["per_direction"][2]
    for page in (summary, folder / "report.md"):
        assert f"| 2 | bold \\| &lt;i&gt; | {accuracy:.3f} |" in page.read_text()
    assert "<td>bold | &lt;i&gt;</td>" in (folder / "report.html").read_text()
    assert "MNIST32" not in (folder / "report.md").read_text()
    assert invoke(*command).exit_code == 0  # it replaces its own
    summary.write_text("# Something else\n")
    assert "holds something else" in invoke(*command).output
    assert summary.read_text() == "# Something else\n"
    assert "no experiment" in invoke("report", folder, "--not-run", "mnist33", "no GPU").output


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(HBenchError, match="no results there"):
        collect(tmp_path)
    result = invoke("report", tmp_path / "absent")
    assert result.exit_code == 1
    assert "no results there" in result.output


def test_what_ran_out_of_memory_stands_in_the_table():
    result = VramSweep.load(V01 / "vram-sweep")
    out_of_memory = {"status": "oom", "memory_mib": None, "step_seconds": ()}
    cells = [
        replace(cell, **out_of_memory) if cell.strategy == "vanilla" and cell.M > 10 else cell for cell in result.cells
    ]
    (artifact,) = (each for each in ARTIFACTS if each.folder == "vram-sweep")
    rows = {row.artifact: row for row in artifact.rows(replace(result, cells=cells), Paper())}
    memory = rows["training memory of vanilla in MiB, M = 5, 10, 20, 40"]
    assert re.fullmatch(r"[\d,]+; [\d,]+; out of memory; out of memory", memory.ours)
    assert memory.n == "5 steps a cell"
    assert "throughput, node / vanilla, M = 10" in rows
    assert "throughput, node / vanilla, M = 20" not in rows


def test_the_table_says_what_the_results_say():
    """Every row of a run's table, against its file."""
    folder = V01
    report = collect(folder)
    rows = {row.artifact: row for row in report.rows}

    def result(artifact, name=None):
        return json.loads((folder / artifact / f"{name or artifact}.json").read_text())

    def check(name, value, bounds=None, digits=3):
        assert rows[name].ours == f"{value:.{digits}f}", name
        assert rows[name].interval == (f"[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]" if bounds else ""), name

    rca, fid, curves = result("rca"), result("fid-lenet-digits", "fid"), result("train-curves")["runs"][0]
    check(f"RCA (chance {rca['chance']:.3f})", rca["accuracy"], rca["interval"])
    check("share of shifted samples outside the domain", rca["outside"], rca["outside_interval"])
    for kind in ("raw", "shifted"):
        check(f"D on {kind} samples", rca[f"D_{kind}"], rca[f"D_{kind}_interval"])
        name = f"FD (LeNet digits), {kind} samples"
        check(name, fid[kind]["fd"], fid[kind]["interval"])
        check(f"{name}, at infinite n", fid[kind]["infinity"], fid[kind]["infinity_interval"])
        assert rows[f"{name}, at infinite n"].n == "extrapolated from 10,000 against 10,000 real"
        assert f"KID (LeNet digits), {kind} samples" in rows
        check(
            f"D on {kind} in training, last third",
            curves[f"D_{kind}"],
            [curves[f"D_{kind}_{end}"] for end in ("low", "high")],
        )
    check("FD (LeNet digits), shifted / raw", fid["shifted"]["fd"] / fid["raw"]["fd"], fid["ratio_interval"])
    check("FD (LeNet digits), shifted / raw, at infinite n", fid["ratio_infinity"], fid["ratio_infinity_interval"])
    check("FD (LeNet digits), between two halves of the real images", fid["halves"], fid["halves_interval"])
    assert rows["FD (LeNet digits), between two halves of the real images"].n == f"{fid['n_real'] // 2:,} each"

    cells = {(cell["strategy"], cell["M"]): cell for cell in result("vram-sweep")["cells"]}
    for strategy in ("node", "vanilla", "torch-checkpoint"):
        Ms = sorted(M for name, M in cells if name == strategy)
        memory = "; ".join(f"{cells[strategy, M]['memory_mib']:,.0f}" for M in Ms)
        assert rows[f"training memory of {strategy} in MiB, M = {', '.join(map(str, Ms))}"].ours == memory
        if strategy != "node":
            seconds = [median(cells[name, Ms[1]]["step_seconds"]) for name in (strategy, "node")]
            check(f"throughput, node / {strategy}, M = {Ms[1]}", seconds[0] / seconds[1], digits=2)

    properties = result("properties")
    for name, key in (
        ("cosine of own and mean direction (homogeneity)", "homogeneity"),
        ("cosine between timesteps (consistency)", "consistency"),
        ("mean edit, distance from the own / its size", "distance_mean"),
        ("time-invariant edit, distance from the own / its size", "distance_global"),
        ("k recognised in own edits", "accuracy_own"),
        ("correlation of s_hat and s (linearity)", "correlation"),
    ):
        whole = {part: values[-1] for part, values in properties[key].items()}  # the last is over all directions
        check(name, whole["value"], [whole["low"], whole["high"]])
    psnrs = [image["psnr"] for image in result("edit")["images"]]
    assert rows["real images reconstructed, median PSNR in dB"].ours == f"{median(psnrs):.1f}"
    for line in result("ablations")["summary"]:
        assert line["metric"] in ("kid_raw", "kid_shifted") or line["low"] >= 0
        if line["metric"] == "rca":
            check(f"{line['variant']}: RCA", line["mean"], [line["low"], line["high"]])

    columns = {"rca": "RCA", "fd_shifted": "FD (LeNet digits) shifted, n = 1,000", "outside": "outside the domain"}
    columns |= {"magnitude_error": "|s_hat - s|", "D_raw": "D on raw", "D_shifted": "D on shifted"}
    for name in ("ablations", "settings"):
        (found,) = (each.comparison for each in report.sections if each.provenance.parent.name == name)
        table = {line[0]: dict(zip(found.columns, line, strict=True)) for line in found.lines}
        for run in result(name, "ablations")["runs"]:
            assert table[run["variant"]]["chance"] == f"{run['chance']:.3f}"
            assert table[run["variant"]]["FD raw"] == f"{run['fd_raw']:.3f}"  # one number: the same for all seeds
        for line in result(name, "ablations")["summary"]:
            if column := columns.get(line["metric"]):
                cell = f"{line['mean']:.3f} [{line['low']:.3f}, {line['high']:.3f}]"
                assert table[line["variant"]][column] == cell, (name, line)


@pytest.mark.parametrize(("n", "words"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (10_000, "10,000 images")])
def test_counts_in_words(n, words):
    assert counted(n, "image") == words
    assert counted(n, "process", "processes") == words.replace("image", "process").replace("processs", "processes")


def test_the_head_has_telling_numbers_with_n_and_where_they_are_from(results, tmp_path):
    report = collect(results)
    found = json.loads((results / "rca" / "rca.json").read_text())
    rca = head([report])["RCA"][0]
    assert rca.value == f"{found['accuracy']:.3f}"
    assert "n = 8 pairs" in rca.detail
    assert f"chance {found['chance']:.3f}" in rca.detail
    write_pages([report], tmp_path)
    origin = json.loads((results / "rca" / PROVENANCE).read_text())
    for page in ("report.html", "report.md"):
        text = (tmp_path / page).read_text()
        top = text[: text.index('id="rca"' if "html" in page else "\n## ")]
        words = [
            origin["started_utc"][:10],
            origin["versions"]["hbench"],
            origin["git"]["commit"][:8],
            origin["device"],
        ]
        assert [word for word in [*words, rca.value, rca.detail, rca.meaning] if word not in top] == []


def test_of_several_results_that_of_most_samples_is_in_the_head(results):
    report = collect(results)
    (rca,) = [section for section in report.sections if section.artifact.folder == "rca"]

    def measured(n):
        origin = replace(rca.origin, details=rca.origin.details | {"n": n})
        return replace(rca, origin=origin, highlights=[replace(each, detail=str(n)) for each in rca.highlights])

    sections = [measured(n) for n in (5, 9, 7, 8)]
    found = head(
        [replace(report, sections=[*sections, replace(rca, highlights=[replace(rca.highlights[0], name="x")])])]
    )
    assert {name: number.detail for name, (number,) in found.items() if name != "x"} == dict.fromkeys(
        [each.name for each in rca.highlights], "9"
    )
    assert "x" in found


def test_only_numbers_of_a_classifier_are_called_so():
    found = Fidelity.load(V01 / "fid-lenet-digits")
    for metric in ("FID", "FD (random ResNet-18)"):
        (told,) = fidelity_highlights(replace(found, metric=metric), Paper())
        assert "classifier" not in told.meaning


def test_numbers_of_several_runs_have_their_names():
    curves = TrainingCurves.load(V01 / "train-curves")
    two = replace(curves, runs=[curves.runs[0], replace(curves.runs[0], run="other")])
    assert [row.artifact.partition("last third")[2] for row in curve_rows(two, Paper())] == [
        *[f" ({curves.runs[0].run})"] * 2,
        *[" (other)"] * 2,
    ]
    share = Estimate(mean=0.5, interval=(0.4, 0.6), n=9)
    runs = [RunScore(run=name, title="T", mos=share, floor=share, marks=9) for name in ("a", "b")]
    rest = {"directions": [], "alpha": None, "self_agreement": share, "self_agreement_by_assessor": {}}
    of_two = MosScore(runs=runs, sheets=2, sheets_made=2, seed=0, **rest)
    assert [each.name for each in mos_highlights(of_two, Paper())] == ["MOS of a", "MOS of b"]
    assert [each.name for each in mos_highlights(replace(of_two, runs=runs[:1]), Paper())] == ["MOS"]


def test_at_most_five_numbers_of_a_run_are_in_the_head():
    whole, small = collect(V01), collect(V01 / "m20")
    assert len(head([whole])) == 5
    numbers = head([whole, small])
    assert all(len(found) == 2 for found in numbers.values())
    assert numbers["Visible directions"][1] is None


def test_the_sweep_is_summed_up_by_its_ends():
    result = VramSweep.load(Path(__file__).parents[2] / "results" / "mnist32" / "vram-sweep")
    (found,) = sweep_highlights(result, Paper())
    (section,) = collect(Path(__file__).parents[2] / "results" / "mnist32").sections
    assert section.paper == "node flat, vanilla past 24 GB"
    assert found.value == "1,932 → 1,934 MiB"
    assert "M = 5 → 20, plain back-propagation 4,314 → 14,052 MiB" in found.detail
    assert sweep_highlights(replace(result, cells=[c for c in result.cells if c.strategy != "node"]), Paper()) == []


def test_runs_of_one_experiment_have_headings_of_their_own(results, tmp_path):
    folders = [tmp_path / "a" / "train", tmp_path / "b" / "train"]
    for folder in folders:
        shutil.copytree(results, folder)
    reports = [collect(folder) for folder in folders]
    title = reports[0].experiment.title
    assert distinct_names(reports[:1]) == [title]
    assert distinct_names(reports) == [f"{title} (a/train)", f"{title} (b/train)"]
    write_pages(reports, tmp_path)
    page = (tmp_path / "report.html").read_text()
    for name in distinct_names(reports):
        assert f">{name}</h2>" in page
        assert f'<th scope="col">{name}</th>' in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_a_run_that_is_named_twice_is_shown_once(results, tmp_path):
    assert invoke("report", results, results, "--out", tmp_path).exit_code == 0
    assert "<h1>Directions of Digits16" in (tmp_path / "report.html").read_text()


def test_every_artifact_of_the_page_explains_its_terms_and_pictures():
    for artifact in ARTIFACTS:
        if artifact.on_page:
            assert artifact.caption.endswith(".")
            assert artifact.caption.count(". ") == 0, "one sentence"
            assert set(artifact.seen) == set(artifact.charts)


def test_no_cell_of_the_paper_is_empty_and_what_was_not_run_is_a_list(results, tmp_path):
    write_pages([collect(results)], tmp_path)
    page = (tmp_path / "report.html").read_text()
    numbers = page[page.index('id="numbers"') :]
    assert "<td></td>" not in numbers
    assert "not run" not in numbers
    assert "The paper: <b>" not in page  # it has no digits of scikit-learn
    absent = page[page.index('id="not-run-1"') : page.index('id="numbers"')]
    assert "<b>Mean opinion score</b> (Table 1)" in absent
    assert "Fréchet inception distance" not in absent  # Inception knows no digits
    text = (tmp_path / "report.md").read_text()
    assert text.index("Not run") < text.index("## All numbers") < text.index("| RCA (chance")


def test_the_features_of_kid_are_named():
    folder = V01 / "fid-lenet-digits"
    result = Fidelity.load(folder)
    names = [row.artifact for row in fidelity_rows(result, Paper())]
    assert "KID (LeNet digits), raw samples" in names
    assert not [name for name in names if name.startswith("KID,")]
    names = [row.artifact for row in fidelity_rows(replace(result, metric="FID"), Paper())]
    assert "KID (Inception), raw samples" in names


def test_charts_are_drawn_anew_from_the_numbers_alone(results, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(results, folder)
    chart, grid = folder / "rca" / "rca.png", folder / "traverse" / "directions.png"
    drawn, images = chart.read_bytes(), grid.read_bytes()
    for path in (chart, grid):
        path.write_bytes(images)
    files = {path: path.read_bytes() for path in folder.rglob("*.json")}
    assert redraw(folder) == [chart]
    assert chart.read_bytes() == drawn
    assert grid.read_bytes() == images  # of images, which are gone
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == files
    chart.write_bytes(images)
    assert invoke("report", folder).exit_code == 0
    assert chart.read_bytes() == images
    assert invoke("report", folder, "--redraw").exit_code == 0
    assert chart.read_bytes() == drawn


def test_a_damaged_picture_is_named(results, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(results, folder)
    (folder / "rca" / "rca.png").write_bytes(b"\x89PNG")
    result = invoke("report", folder)
    assert result.exit_code == 1
    assert "rca.png: no picture in PNG: remove it, or make the result again" in result.output
