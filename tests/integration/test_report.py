import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from command_line import invoke

from hbench.config import Paper
from hbench.errors import HBenchError
from hbench.evaluation.vram_sweep import VramSweep
from hbench.reporting.artifacts import ARTIFACTS
from hbench.reporting.report import REASONS, collect, write_pages


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
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # needs no other file
    rows = {row.artifact: row for row in report.rows}
    assert rows["Mean opinion score"].ours.startswith("not run:")
    assert not rows["Mean opinion score"].ran


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
    file.write_text(json.dumps(values))
    write_pages([collect(folder)], tmp_path)
    assert "<td>![x](http://x) bold</td>" in (tmp_path / "report.html").read_text()
    assert r"| 1 | ![x]\(http://x) bold | not defined |" in (tmp_path / "report.md").read_text()
    file.write_text(json.dumps(values | {"directions": [{"direction": "<b>", "name": "x", "accuracy": 1}]}))
    with pytest.raises(HBenchError, match=r"traverse\.json: not a traverse result as hbench 0\.[12] writes it"):
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
    (folder / "mos" / "score" / "mos.json").write_text(json.dumps(score))
    rows = {row.artifact: row for row in collect(folder).rows}
    assert (rows["MOS"].ours, rows["MOS"].interval, rows["MOS"].n) == ("0.500", "[0.250, 0.750]", "3 directions")


def test_what_is_not_defined_is_said_so(results, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(results, folder)
    values = json.loads((folder / "rca" / "rca.json").read_text()) | {"D_raw": None, "D_raw_interval": [None, None]}
    (folder / "rca" / "rca.json").write_text(json.dumps(values))
    rows = {row.artifact: row for row in collect(folder).rows}
    assert (rows["D on raw samples"].ours, rows["D on raw samples"].interval) == ("not defined", "")


def test_results_of_different_weights_are_not_one_page(results, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(results, folder)
    file = folder / "traverse" / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights_sha256": {"model": "0"}}))
    with pytest.raises(HBenchError, match="of different weights"):
        collect(folder)


def test_results_of_another_version_are_named(results, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(results, folder)
    values = json.loads((folder / "rca" / "rca.json").read_text())
    del values["D_raw_interval"]
    (folder / "rca" / "rca.json").write_text(json.dumps(values))
    with pytest.raises(HBenchError, match=r"rca.json: not a rca result as hbench 0\.[12] writes it .* make it again"):
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
    rows = [line for line in lines if len(line) == 8]
    found = json.loads((folder / "rca" / "rca.json").read_text())
    (ours,) = [row for row in rows if row[1].startswith("RCA")]
    assert ours[4] == f"{found['accuracy']:.3f}"
    assert ours[7] == "[provenance](run/rca/provenance.json)"
    assert all((summary.parent / link).exists() for link in re.findall(r"\]\(([^)]+)\)", text))
    (theirs,) = [row for row in rows if row[:2] == ["MNIST32-400-20-32-5", "Reconstructor classification accuracy"]]
    assert theirs[3:5] == ["0.77", "not run: no GPU"]
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
    result = VramSweep.load(Path(__file__).parents[2] / "results" / "mnist16" / "vram-sweep")
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
    """Every row of the shipped run's table, against its file."""
    folder = Path(__file__).parents[2] / "results" / "mnist16"
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
