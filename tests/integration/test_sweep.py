import json
import os
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from command_line import TINY, invoke, tiny_options

from hbench.errors import HBenchError, is_out_of_memory
from hbench.evaluation import sweep_cells
from hbench.evaluation import vram_sweep as module
from hbench.evaluation.sweep_cells import Row, cells, measure, measure_apart
from hbench.evaluation.vram_sweep import VramSweep, default_steps, vram_sweep
from hbench.experiments import load_experiment
from hbench.models import build_model
from hbench.reporting.charts.sweep import draw_sweep
from hbench.runtime.memory import gpu_memory
from hbench.store.provenance import provenance
from hbench.training import strategy

CPU = torch.device("cpu")
COLUMNS = (
    "strategy M batch_size precision device memory_mib memory_source images_per_second images_per_second_iqr status"
)


def tiny_cells(strategies=("node",), Ms=(2,), **options):
    return cells(load_experiment("digits16", TINY), strategies, Ms, device="cpu", **options)


def sweep(*arguments):
    return invoke("vram-sweep", "digits16", *tiny_options(), "--device", "cpu", "--quiet", *arguments)


def fake(cell, **changes):
    settings = cell.experiment.discovery
    row = Row(settings.strategy, settings.M, settings.batch_size, settings.precision, cell.device)
    values = {"memory_mib": 10.0 * settings.M, "memory_source": "fake", "step_seconds": (1.0, 2.0)}
    return replace(row, **values | changes)


@pytest.fixture
def measured(monkeypatch):
    """The keys of the cells that a sweep measures, in place of which stand rows made up at once."""
    keys = []

    def measure_at_once(cell):
        keys.append(cell.key)
        return fake(cell)

    monkeypatch.setattr(module, "measure_apart", measure_at_once)
    return keys


@pytest.mark.slow
def test_a_cell_in_a_fresh_process():
    (cell,) = tiny_cells(repeats=3)
    row = measure_apart(cell)
    assert row.status == "ok", row.error
    assert row.key == ("node", 2)
    assert (row.batch_size, row.precision, row.device) == (4, "bfloat16", "cpu")
    assert 1 < row.memory_mib < 500  # without a reset of the high-water mark it would be 0: the imports hide it
    assert "peak RSS" in row.memory_source
    assert row.baseline_mib > 100
    assert 0.1 < row.saved_tensors_mib < row.memory_mib
    assert len(row.step_seconds) == 3
    assert row.images_per_second == pytest.approx(4 / sorted(row.step_seconds)[1])
    assert row.images_per_second_iqr >= 0
    assert row.max_memory_allocated_mib is None


@pytest.mark.slow
def test_the_step_is_the_trainers(tmp_path, tiny):
    from hbench.training.discover import train

    values = {"pool": 0, "steps": 2, "decay": 0.0, "precision": "float32"}
    experiment = load_experiment("digits16", [*TINY, *(f"discovery.{k}={v}" for k, v in values.items())])
    experiment = experiment.model_copy(
        update={"pretrain": experiment.pretrain.model_copy(update={"weights": "float32"})}
    )
    torch.manual_seed(0)
    model = build_model(experiment).eval().requires_grad_(False)
    step = sweep_cells.step_taker(experiment, model, seed=5, device=CPU)
    taken = [step(i) for i in range(2)]
    train(experiment, model, tmp_path, seed=5, device=CPU)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": i, **row} for i, row in enumerate(taken)]


@pytest.mark.slow
def test_auto_is_a_row_with_what_it_kept(tiny, monkeypatch):
    probes, probe = [], strategy.measure_apart

    def once(*arguments, **options):  # the probe knows no budget, so one serves both
        if not probes:
            probes.append(probe(*arguments, **options))
        return probes[0]

    monkeypatch.setattr(strategy, "measure_apart", once)
    ample, tight = (
        measure_apart(cells(with_budget(tiny, gib), ["auto"], [4], device="cpu", repeats=1)[0]) for gib in (4, 0.001)
    )
    assert (ample.strategy, ample.M, ample.keep, ample.status) == ("auto", 4, 4, "ok")
    assert ample.memory_mib > 0
    assert (tight.strategy, tight.status) == ("auto", "oom")
    assert "memory budget is 1 MiB" in tight.error


def test_nodes_wait_in_cpu_memory_where_a_strategy_has_nodes():
    experiment = load_experiment("digits16", [*TINY, "discovery.nodes=cpu"])
    found = cells(experiment, ["node", "vanilla", "auto", "torch-checkpoint"], [2], device="cpu")
    places = [cell.experiment.discovery.nodes for cell in found]
    assert places == ["cpu", "device", "cpu", "device"]


def with_budget(tiny, gib):
    update = {"strategy": "auto", "memory_budget": gib}
    return tiny.model_copy(update={"discovery": tiny.discovery.model_copy(update=update)})


def test_memory_limit_makes_a_row():
    (cell,) = tiny_cells(memory_limit_mib=0.5)
    row = measure(cell)
    assert row.status == "oom"
    assert "pass the memory limit of 0.5 MiB" in row.error
    assert row.memory_mib is None
    assert row.step_seconds == ()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."),  # of another process
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_is_a_row_and_other_errors_are_not(monkeypatch, error):
    def failing(*_):
        raise error

    (cell,) = tiny_cells()
    monkeypatch.setattr(sweep_cells, "train_step", failing)
    assert is_out_of_memory(error)
    assert measure(cell).status == "oom"
    error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes"):
        measure(cell)


def test_a_killed_and_a_broken_process(monkeypatch):
    (cell,) = tiny_cells()
    monkeypatch.setattr(
        "hbench.runtime.fresh_process.CHILD", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    )
    assert measure_apart(cell).status == "oom"
    monkeypatch.setattr(
        "hbench.runtime.fresh_process.CHILD", [sys.executable, "-c", "raise ValueError('no such kernel')"]
    )
    row = measure_apart(cell)
    assert (row.status, row.error) == ("failed", "ValueError: no such kernel")
    advised = "raise RuntimeError('CUDA error: invalid argument\\nCompile with TORCH_USE_CUDA_DSA')"
    monkeypatch.setattr("hbench.runtime.fresh_process.CHILD", [sys.executable, "-c", advised])
    assert measure_apart(cell).error == "RuntimeError: CUDA error: invalid argument"


def test_default_steps():
    assert default_steps(load_experiment("mnist16", ["discovery.M=10"])) == [5, 10, 20, 40]
    assert default_steps(load_experiment("mnist16", ["discovery.M=1"])) == [1, 2, 4]
    assert default_steps(load_experiment("mnist16", ["discovery.M=400"])) == [200, 400, 800, 1000]


@pytest.mark.slow
def test_the_table_goes_on_after_oom_and_says_what_failed(tmp_path, monkeypatch):
    def various(cell):
        changes = {
            ("vanilla", 4): {"status": "oom", "error": "no memory", "memory_mib": None, "step_seconds": ()},
            ("node", 4): {"status": "failed", "error": "Error: bad luck", "memory_mib": None, "step_seconds": ()},
        }
        return fake(cell, **changes.get(cell.key, {}))

    monkeypatch.setattr(module, "measure_apart", various)
    out = tmp_path / "sweep"
    result = sweep("--m", "4,2", "--strategies", "vanilla,node", "--memory-limit", "1GiB", "--out", out)
    assert result.exit_code == 1
    assert "1 cell failed" in result.output
    assert "vanilla, M = 4: oom: no memory" in result.stderr
    table = pd.read_csv(out / "vram-sweep.csv")
    assert list(table)[:10] == COLUMNS.split()
    assert [*zip(table["strategy"], table["M"], table["status"], strict=True)] == [
        ("node", 2, "ok"),
        ("node", 4, "failed"),
        ("vanilla", 2, "ok"),
        ("vanilla", 4, "oom"),
    ]
    assert (out / "vram-sweep.png").stat().st_size > 1000
    origin = json.loads((out / "provenance.json").read_text())
    assert origin["memory_limit_mib"] == 1024
    assert origin["complete"] is False

    again = []
    monkeypatch.setattr(module, "measure_apart", lambda cell: again.append(cell.key) or fake(cell))
    resume = sweep("--m", "4,2", "--strategies", "vanilla,node", "--memory-limit", "1GiB", "--out", out, "--resume")
    assert resume.exit_code == 0, resume.output
    assert again == [("node", 4)]
    assert json.loads((out / "provenance.json").read_text())["complete"] is True


@pytest.mark.parametrize("limit", [None, 2000.0])
@pytest.mark.parametrize("statuses", [["ok", "oom"], ["oom"], ["failed"]])
def test_picture_of_any_table(tmp_path, limit, statuses):

    (cell,) = tiny_cells()
    nothing = {"memory_mib": None, "memory_source": None, "step_seconds": ()}
    rows = [
        fake(cell, M=M, status=status, **({} if status == "ok" else nothing)) for M, status in enumerate(statuses, 1)
    ]
    origin = provenance(cell.experiment, CPU, 0, memory_limit_mib=limit)
    draw_sweep(VramSweep(cells=rows, provenance=origin), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path, monkeypatch, measured):
    quick = module.measure_apart

    def interrupted(cell):
        if len(measured) == 2:
            raise KeyboardInterrupt
        return quick(cell)

    monkeypatch.setattr(module, "measure_apart", interrupted)
    chosen = ["--m", "2,3", "--strategies", "node,vanilla", "--out", tmp_path]
    assert sweep(*chosen).exit_code == 1
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(pd.read_csv(tmp_path / "vram-sweep.csv")) == 2
    assert json.loads((tmp_path / "provenance.json").read_text())["complete"] is False

    monkeypatch.setattr(module, "measure_apart", quick)
    for other, said in [
        (["--resume", "--batch-size", 8], "experiment.discovery.batch_size = 4, not 8"),
        (["--resume", "--precision", "float32"], "experiment.discovery.precision = 'bfloat16'"),
        (["--resume", "--repeats", 9], "repeats = 5, not 9"),
        (["--resume", "--seed", 1], "seed = 0, not 1"),
        ([], "already holds results"),
    ]:
        result = sweep(*chosen, *other)
        assert result.exit_code == 1
        assert said in result.output
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    result = sweep(*chosen, "--resume")
    assert result.exit_code == 0, result.output
    assert measured == [("node", 2), ("node", 3), ("vanilla", 2), ("vanilla", 3)]
    assert json.loads((tmp_path / "provenance.json").read_text())["complete"] is True
    assert len(result.stdout.strip().splitlines()) == 6  # with the number of timed steps


@pytest.mark.parametrize(
    ("counts", "line"), [([1], "1 timed step"), ([2], "2 timed steps"), ([1, 3], "1 or 3 timed steps")]
)
def test_the_summary_counts_the_timed_steps(counts, line):
    (cell,) = tiny_cells()
    rows = [fake(cell, step_seconds=(1.0,) * n, images_per_second=1.0) for n in counts]
    assert VramSweep(cells=rows).summary().splitlines()[-1] == f"n = {line} a cell"


def test_sigterm_lets_the_cell_finish(tmp_path, monkeypatch, measured):
    quick = module.measure_apart

    def terminated(cell):
        os.kill(os.getpid(), 15)
        return quick(cell)

    monkeypatch.setattr(module, "measure_apart", terminated)
    result = sweep("--m", "2,3", "--strategies", "node", "--out", tmp_path)
    assert result.exit_code == 0
    assert "stopped by SIGTERM after 1 of 2 cells: go on with --resume" in result.stderr
    assert measured == [("node", 2)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--m", "5,x"], "write whole numbers with commas"),
        (["--m", "0"], "is not in the range"),
        (["--m", "1001"], "at most 1000, the number of timesteps"),
        (["--strategies", "fast"], "input should be 'auto', 'node', 'vanilla', 'offload' or 'torch-checkpoint'"),
        (["--memory-limit", "24"], "write a number with its unit"),
        (["--memory-limit", "0GiB"], "write a number with its unit"),
        (["--batch-size", "1"], "is not in the range"),
        (["--resume"], "nothing to resume there"),
        (["--resume", "--overwrite"], "leave one of them out"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, options, said):
    result = sweep(*options, "--out", tmp_path / "x")
    assert result.exit_code in (1, 2)
    assert said in result.output.strip().splitlines()[-1]
    assert not (tmp_path / "x").exists()


# What a machine without a GPU can tell about CUDA ---------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """A GPU as NVML and PyTorch would describe it; ``processes`` is what NVML lists on it."""
    import pynvml

    state = SimpleNamespace(processes={}, used=0)

    def handle(uuid):
        assert uuid == "GPU-1234"
        return "handle"

    def listed(of):
        assert of == "handle"
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in state.processes.items()]

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", listed)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234"))
    monkeypatch.setattr(torch.cuda, "device_memory_used", lambda _: state.used)
    return state


def test_gpu_memory_is_the_process_or_else_the_device_over_idle(gpu):
    device = torch.device("cuda")
    gpu.processes, gpu.used = {os.getpid(): 3 * 2**30, 1: 2**30}, 5 * 2**30
    assert gpu_memory(device, idle=2**30) == (3072, "NVML, this process")
    for processes in ({1: 2**30}, {os.getpid(): None}):
        gpu.processes = processes
        assert gpu_memory(device, idle=2**30) == (4096, "NVML, the device over its idle state")


@pytest.mark.parametrize(("limit", "status"), [(None, "ok"), (24 * 1024, "ok"), (2000, "oom")])
def test_a_cell_on_a_gpu(gpu, monkeypatch, limit, status):
    """All of it but the GPU: the networks run on the CPU, what PyTorch and NVML say about memory is made up."""
    cuda = torch.device("cuda")
    limits = []
    properties = SimpleNamespace(uuid="1234", total_memory=48 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: limits.append(given))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 1500 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 1000 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 1500 * 2**20)
    monkeypatch.setattr(sweep_cells, "pick_device", lambda _: cuda)
    taker = sweep_cells.step_taker
    monkeypatch.setattr(
        sweep_cells, "step_taker", lambda experiment, model, seed, _: taker(experiment, model, seed, CPU)
    )
    gpu.processes = {os.getpid(): 2100 * 2**20}
    row = measure(tiny_cells(memory_limit_mib=limit, repeats=1)[0])
    assert row.status == status, row.error
    # of the 2,100 MiB, 600 are no allocator's
    assert limits == ([] if limit is None else [(pytest.approx((limit - 600) / (48 * 1024)), 0)])
    if status == "ok":
        assert (row.memory_mib, row.memory_source) == (2100, "NVML, this process")
        assert (row.max_memory_allocated_mib, row.max_memory_reserved_mib) == (1000, 1500)
        assert row.baseline_mib == 2100
        assert row.saved_tensors_mib is None


def test_a_busy_gpu_is_refused_or_said(gpu, measured):
    cell = replace(tiny_cells()[0], device="cuda")
    rows = []
    gpu.processes = {os.getpid(): None, 4711: 2**30}
    with pytest.raises(HBenchError, match=r"PID 4711.*`allow_busy=True`"):
        module.measure_all([cell], rows.append)
    assert not rows
    assert module.measure_all([cell], rows.append, allow_busy=True)
    gpu.processes = {}
    module.measure_all([cell], rows.append)
    assert [row.other_processes for row in rows] == [1, 0]


def test_in_a_container_this_process_is_one_of_the_host_s(gpu, measured, monkeypatch):
    cell = replace(tiny_cells()[0], device="cuda")
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 2**20)  # it has computed there
    gpu.processes = {4711: 2**30}
    rows = []
    assert module.measure_all([cell], rows.append)
    assert rows[0].other_processes == 0
    gpu.processes = {4711: 2**30, 4712: 2**30}
    with pytest.raises(HBenchError, match="allow_busy"):
        module.measure_all([cell], rows.append)


def test_without_a_driver_one_line(monkeypatch):
    import pynvml

    def absent():
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    with pytest.raises(HBenchError, match="NVML does not answer"):
        module.gpu_processes(torch.device("cuda"))


def test_rows_survive_their_json():
    row = fake(tiny_cells()[0], other_processes=2)
    assert sweep_cells.read_row(json.loads(json.dumps(asdict(row)))) == row


def test_a_sweep_from_python(measured, tiny, tmp_path):
    seen = []
    sizes = {"strategies": ["node"], "steps": [2, 3], "device": "cpu"}
    result = vram_sweep(tiny, **sizes, batch_size=6, on_row=lambda part: seen.append(len(part.cells)))
    assert seen == [0, 1, 2]
    assert [row.batch_size for row in result.cells] == [6, 6]
    assert result.detail("complete") is True
    again = VramSweep.load(result.save(tmp_path / "sweep"))
    assert again == result
    part = replace(again, cells=again.cells[:1])
    measured.clear()
    assert vram_sweep(tiny, **sizes, batch_size=6, resume_from=part) == result
    assert measured == [("node", 3)]
    with pytest.raises(HBenchError, match=r"measured with experiment\.discovery\.batch_size = 6, not 4"):
        vram_sweep(tiny, **sizes, resume_from=part)
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        vram_sweep(tiny, **sizes, repeats=0)


@pytest.mark.slow
def test_resume_mends_a_table_that_a_kill_left_behind(measured, tmp_path):
    arguments = ["--steps", "2,3", "--strategies", "node", "--out", str(tmp_path / "x")]
    assert sweep(*arguments).exit_code == 0
    table, picture = tmp_path / "x" / "vram-sweep.csv", tmp_path / "x" / "vram-sweep.png"
    whole = table.read_text()
    table.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    picture.unlink()
    measured.clear()
    assert sweep(*arguments, "--resume").exit_code == 0
    assert measured == []
    assert table.read_text() == whole
    assert picture.is_file()


def test_the_batch_of_fig_4_is_the_experiment_s_own():
    def batch_size(*options):
        result = invoke("vram-sweep", "mnist32", "--dry-run", *options)
        return json.loads(result.stdout)["discovery"]["batch_size"]

    assert load_experiment("mnist32").discovery.batch_size == 128
    assert batch_size() == 32
    assert batch_size("--batch-size", "8") == 8
    assert batch_size("--set", "evaluation.sweep_batch_size=16") == 16
