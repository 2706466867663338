"""What goes wrong outside of hbench: kills, full disks, damaged files, no memory. Nothing may be lost.

The fault campaign kills the real commands at random moments: ``pytest tests/faults -k campaign --faults 50``.
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path

import pandas as pd
import pytest
import torch
from command_line import invoke, refused, snapshot, tiny_options, written_again
from processes import start_command
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hbench.errors import HBenchError
from hbench.store.files import sha256, temporary_name
from hbench.store.folders import LOCK, claimed_folder
from hbench.store.model import load_model
from hbench.store.provenance import provenance
from hbench.store.run_files import ROLES
from hbench.store.weights import FORMAT, save_weights
from hbench.training import discover as module
from hbench.training import step as training_step
from hbench.training.checkpoint import CHECKPOINT, Checkpoint, save_checkpoint
from hbench.training.discover import train

CPU = torch.device("cpu")

STEPS = 8
OPTIONS = tiny_options(f"pretrain.steps={STEPS}", "pretrain.sample_every=4", f"discovery.steps={STEPS}")
COMMANDS = ("pretrain", "train", "fid", "sweep")


# The campaign -------------------------------------------------------------------------------------------------------


def command(name, out, tiny_model, tiny_run, classifier_file):
    """The command line that is killed, and what it needs to go on."""
    if name == "pretrain":
        return ["pretrain", "digits16", *OPTIONS, "--out", out, "--quiet"], ["--resume"]
    if name == "train":
        return ["train", "digits16", *OPTIONS, "--model", tiny_model, "--out", out, "--quiet"], ["--resume"]
    if name == "fid":
        options = ["--feature-extractor", "lenet-digits", "--weights", classifier_file, "--samples", 256, "--quiet"]
        return ["fid", tiny_run, *options, "--cache", out / "cache", "--out", out / "fid"], ["--overwrite"]
    options = ["--m", "2,3", "--strategies", "node", "--repeats", 1, "--device", "cpu", "--quiet"]
    return ["vram-sweep", "digits16", *OPTIONS, *options, "--out", out], ["--resume"]


def begun(process, lock):
    """Waits until the process has claimed its folder, or has ended."""
    while process.is_alive():
        if lock.is_file() and lock.read_text() == str(process.pid):
            return
        time.sleep(0.002)


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def runs(pid):
    """Whether a process is there, and not only waits to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_gone(pids):
    """Whether processes are gone, or will be in a moment."""
    deadline = time.monotonic() + 2
    while any(map(runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(runs, pids))


def writing(folder):
    return any(file.name.endswith(".tmp") for file in folder.rglob(".*"))


def kill(words, folder, lock, rng, duration, log):
    """Runs a command and kills it at a random moment, half of the time while it writes a file; whether it was killed.

    A command that was faster than the kill has not been killed.
    """
    process = start_command(words, log)
    begun(process, lock)
    deadline = time.monotonic() + rng.uniform(0, duration)
    while time.monotonic() < deadline and process.is_alive():
        time.sleep(0.001)
    if rng.random() < 0.5:
        while process.is_alive() and not writing(folder):
            pass
    own = children(process.pid)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), log.read_text()
    assert all_gone(own)
    return process.exitcode == -signal.SIGKILL


def rows_of_sweep(folder):
    file = folder / "vram-sweep.json"
    return [json.dumps(row) for row in json.loads(file.read_text())["cells"]] if file.is_file() else []


def outcome(name, folder):
    """All that must be the same however often a command was killed."""
    found = {}
    for file in sorted(folder.rglob("*")):
        key = str(file.relative_to(folder))
        if file.name == LOCK or file.name.endswith(".tmp"):
            found[key] = "left over"
        elif file.suffix == ".safetensors":
            found[key] = {k: (v.dtype, v.tolist()) for k, v in load_file(file).items()}
        elif name != "sweep" and file.name not in ("provenance.json", "samples.json") and file.is_file():
            found[key] = b"" if file.name.startswith("checkpoint") else file.read_bytes()
    if name in ("pretrain", "train"):
        for rows in (pd.read_json(folder / "metrics.jsonl", lines=True), pd.read_csv(folder / "metrics.csv")):
            assert rows["step"].tolist() == list(range(STEPS))
    if name == "sweep":
        table = pd.read_csv(folder / "vram-sweep.csv")
        rows = [json.loads(row) for row in rows_of_sweep(folder)]
        assert [(row["strategy"], row["M"]) for row in rows] == [*zip(table["strategy"], table["M"], strict=True)]
        found["rows"] = [(row["strategy"], row["M"], row["status"]) for row in rows]
    return found


def differences(expected, found):
    return [key for key in sorted(expected.keys() | found.keys()) if expected.get(key) != found.get(key)]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_campaign(name, tmp_path, tiny_model, tiny_run, classifier_file, pytestconfig, record_property):
    n = pytestconfig.getoption("--faults")
    wanted = n // len(COMMANDS) + (COMMANDS.index(name) < n % len(COMMANDS))
    rng = random.Random(name)

    def lines(folder):
        words, again = command(name, folder, tiny_model, tiny_run, classifier_file)
        return words, [*words, *again], (folder / "fid" if name == "fid" else folder) / LOCK

    log = tmp_path / "log"
    if name == "sweep":  # its numbers are times, and never the same
        duration, expected = 8.0, {"rows": [("node", 2, "ok"), ("node", 3, "ok")]}
    else:
        whole = tmp_path / "whole"
        words, _, lock = lines(whole)
        process = start_command(words, log)
        begun(process, lock)
        started = time.monotonic()
        process.join()
        duration = time.monotonic() - started
        assert process.exitcode == 0, log.read_text()
        expected = outcome(name, whole)
        assert "left over" not in expected.values()

    kills = late = runs = 0
    losses = []
    while kills < wanted:
        runs += 1
        folder = tmp_path / f"broken-{runs}"
        words, resumed, lock = lines(folder)
        rows = []
        for _ in range(rng.randint(1, min(3, wanted - kills))):
            was_killed = kill(resumed if lock.parent.exists() else words, folder, lock, rng, duration, log)
            kills, late = kills + was_killed, late + (not was_killed)
            losses += [f"run {runs}: {row} is gone" for row in rows if row not in rows_of_sweep(folder)]
            rows = rows_of_sweep(folder)
            if not was_killed:
                break
        process = start_command(resumed, log)
        process.join()
        if process.exitcode:
            losses.append(f"run {runs}: {log.read_text().strip().splitlines()[-1]}")
        else:
            losses += [f"run {runs}: {key} differs" for key in differences(expected, outcome(name, folder))]
            losses += [f"run {runs}: {row} is gone" for row in rows if row not in rows_of_sweep(folder)]
        assert late < 10 + 2 * wanted
    counts = {"kills": kills, "runs": runs, "late": late, "losses": len(losses)}
    record_property("faults", {"command": name, **counts})
    if file := pytestconfig.getoption("--faults-record"):
        record(Path(file), n, name, counts)
    assert not losses


def record(file, n, name, counts):
    """Keep the counts of one command; those of the others stay, so that a campaign may be made in pieces."""
    origin = provenance(None, torch.device("cpu"), 0).to_json()
    known = json.loads(file.read_text())["commands"] if file.is_file() else {}
    known[name] = counts | {key: origin[key] for key in ("started_utc", "git")}
    values = {
        "kills": sum(count["kills"] for count in known.values()),
        "losses": sum(count["losses"] for count in known.values()),
        "command": f"pytest tests/faults -k campaign --faults {n} --faults-record {file.name}",
        "seeds": "the name of each command; the moments depend on the machine all the same",
        "commands": known,
        **{key: origin[key] for key in ("versions", "device", "threads")},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=2) + "\n")


# One fault each -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, tiny, tiny_model):
    out = tmp_path_factory.mktemp("stopped") / "half"
    stop = iter([None, "stopped"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hbench.training.discover.stop_requests", lambda _: nullcontext(lambda: next(stop)))
        assert not train(tiny, load_model(tiny_model, tiny), out, device=CPU)
    return out


@pytest.fixture
def half(tmp_path, stopped):
    """A discovery that was stopped after two steps, with its checkpoint."""
    return shutil.copytree(stopped, tmp_path / "half")


def resume(out, *options):
    return ["train", "digits16", *tiny_options(), *options, "--quiet", "--resume", "--out", out]


def same_as_whole(out, tiny_run):
    """Whether a resumed run has the bits of one that never stopped."""
    for role in ROLES:
        expected, found = load_file(tiny_run / f"{role}.safetensors"), load_file(out / f"{role}.safetensors")
        assert all(torch.equal(expected[name], found[name]) for name in expected), role
    for name in ("metrics.jsonl", "metrics.csv", "curves.png"):
        assert (out / name).read_bytes() == (tiny_run / name).read_bytes()
    return True


def pointer(folder):
    return json.loads((folder / CHECKPOINT).read_text())


def test_a_checkpoint_is_one_file_with_its_sha256(half, tiny_run):
    about = pointer(half)
    assert (about["step"], about["schema"]) == (2, Checkpoint.SCHEMA)
    assert [file.name for file in half.glob("checkpoint-*")] == [about["file"]]
    assert sha256(half / about["file"]) == about["sha256"]
    assert invoke(*resume(half)).exit_code == 0
    assert len(list(half.glob("checkpoint-*"))) == 1
    assert same_as_whole(half, tiny_run)


@pytest.mark.parametrize("damage", ["truncated", "bit", "empty", "gone"])
def test_a_damaged_checkpoint_is_named_and_nothing_is_written(half, damage):
    file = half / pointer(half)["file"]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    changed = {"truncated": content[:1000], "bit": content, "empty": b""}
    file.unlink() if damage == "gone" else file.write_bytes(changed[damage])
    before = snapshot(half)
    line = refused(*resume(half))
    assert f"{file}: damaged: bring it back from a copy, or train again in another --out" in line
    assert snapshot(half) == before


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"step": "2"}', "[" * 100_000, '{"format": "1", "step": 2, "file": "../x.pt"}']
)
def test_a_damaged_pointer_is_one_line(half, text):
    (half / CHECKPOINT).write_text(text)
    assert f"{half / CHECKPOINT}: " in refused(*resume(half))


def test_the_pointer_leads_to_no_other_file(half, tmp_path):
    about = pointer(half)
    (half / about["file"]).rename(tmp_path / "elsewhere.pt")
    (half / CHECKPOINT).write_text(json.dumps(about | {"file": "../elsewhere.pt"}))
    assert "damaged" in refused(*resume(half))


def test_a_kill_between_checkpoint_and_pointer_leaves_the_one_before(half, tiny, tiny_run, monkeypatch):
    def killed(path, _):
        assert path.name == CHECKPOINT
        raise KeyboardInterrupt

    before = pointer(half)
    with monkeypatch.context() as patch:
        patch.setattr("hbench.store.records.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(half, tiny, 0, 3, {"shift_block": {"x": torch.ones(3)}})
    assert len(list(half.glob("checkpoint-*"))) == 2
    assert pointer(half) == before
    assert invoke(*resume(half)).exit_code == 0
    assert len(list(half.glob("checkpoint-*"))) == 1
    assert same_as_whole(half, tiny_run)


def test_a_kill_just_after_the_last_checkpoint_costs_no_picture(half, tiny_run, monkeypatch):
    def killed(*arguments, **named):
        save_checkpoint(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hbench.training.loop.save_checkpoint", killed)
        assert invoke(*resume(half)).exit_code == 1
    assert pointer(half)["step"] == 4
    assert invoke(*resume(half)).exit_code == 0
    assert same_as_whole(half, tiny_run)


def test_a_checkpoint_of_another_kind_is_named(half, tiny_model, tmp_path):
    assert "was started with discovery.lr = 0.003" in refused(*resume(half, "--set", "discovery.lr=0.5"))
    assert "was started with --seed 0, not 1" in refused(*resume(half, "--seed", 1))
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    assert "was started by another command" in refused(*resume(other))
    (half / CHECKPOINT).write_text(json.dumps(pointer(half) | {"schema": Checkpoint.SCHEMA + 1, "x": 1}))
    assert "was written by a newer hbench (schema 2, this one reads up to 1)" in refused(*resume(half))


def test_files_of_a_newer_version_are_named(tmp_path, tiny_run):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    for role in ("shift_block", "model"):
        with safe_open(run / f"{role}.safetensors", "pt") as file:
            metadata = file.metadata() | {"format": str(FORMAT + 1), "hbench": "9.0", "experiment": '{"unknown": 1}'}
        save_file(load_file(run / f"{role}.safetensors"), run / f"{role}.safetensors", metadata)
    newer = "was written by hbench 9.0, newer than this"
    assert newer in refused("rca", run)
    assert newer in refused("sample", run)
    values = json.loads((run / "experiment.json").read_text()) | {"schema": 12, "unknown": {}}
    (run / "experiment.json").write_text(json.dumps(values))
    line = refused("train-curves", run, "--out", tmp_path / "curves")
    assert "was written by a newer hbench (schema 12, this one reads up to 1)" in line


@pytest.mark.slow
def test_resume_starts_where_a_kill_left_no_checkpoint(half, tmp_path, tiny_run, tiny_model):
    for file in (half / CHECKPOINT, half / pointer(half)["file"]):
        file.unlink()
    dead = temporary_name(half / "metrics.csv").name.replace(str(os.getpid()), "999999999")
    (half / dead).write_text("half a row")
    assert "already holds results" in refused(*resume(half)[:-3], "--model", tiny_model, "--out", half)
    assert invoke(*resume(half)).exit_code == 0  # on the model that it had begun with
    assert same_as_whole(half, tiny_run)
    assert not list(half.glob(".*"))

    bare = tmp_path / "bare"  # killed before it wrote anything
    bare.mkdir()
    (bare / LOCK).write_text("999999999")
    assert invoke(*resume(bare), "--model", tiny_model).exit_code == 0
    assert same_as_whole(bare, tiny_run)


@pytest.mark.slow
def test_resume_keeps_off_what_it_did_not_begin(tmp_path, half, tiny_model):
    assert "nothing to resume there" in refused(*resume(tmp_path / "absent"), "--model", tiny_model)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert "nothing to resume there" in refused(*resume(tmp_path / "mine"), "--model", tiny_model)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    assert invoke(*resume(half)).exit_code == 0
    (half / CHECKPOINT).unlink()  # to save space, say: the finished weights must not be begun again
    before = snapshot(half)
    assert "no checkpoint.json to go on from" in refused(*resume(half))
    assert snapshot(half) == before


def test_missing_rows_are_not_passed_over(half):
    lines = (half / "metrics.jsonl").read_text().splitlines()
    for text in ("", lines[0], lines[1] + "\n" + lines[1], lines[0] + "\n" + lines[1][:9]):
        (half / "metrics.jsonl").write_text(text)
        assert "metrics.jsonl: rows are missing" in refused(*resume(half))


@pytest.mark.slow
def test_two_processes_in_one_folder(tmp_path, tiny_model):
    out = tmp_path / "run"
    words, again = command("train", out, tiny_model, None, None)
    first = start_command([*words, "--set", "discovery.steps=100000"], tmp_path / "log")
    begun(first, out / LOCK)
    deadline = time.monotonic() + 60
    while not (out / CHECKPOINT).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    steps = [*words, *again, "--set", "discovery.steps=100000", "--max-minutes", 1e-6]
    line = refused(*steps)
    assert f"{out}: another hbench process writes here (PID {first.pid}): wait for it" in line
    first.kill()
    first.join()
    assert (out / LOCK).exists()
    result = invoke(*steps)  # at once: a killed process holds no lock
    assert result.exit_code == 0, result.output
    assert "go on with --resume" in result.stderr
    assert not (out / LOCK).exists()


def test_a_clock_that_goes_back_changes_nothing(half, tiny_run, monkeypatch):
    years = itertools.count(start=2040, step=-1)

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(next(years), 1, 1, tzinfo=tz)

    monkeypatch.setattr("hbench.store.provenance.datetime", Clock)
    monkeypatch.setattr(time, "time", lambda: float(10**9 * next(years)))
    for file in half.iterdir():
        os.utime(file, (2**32, 2**32))  # the files are of the future
    assert invoke(*resume(half)).exit_code == 0
    assert same_as_whole(half, tiny_run)
    assert 0 <= json.loads((half / "provenance.json").read_text())["wall_seconds"] < 60


# No space, no permission --------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a disk of so many KiB; all of them are gone after the test."""
    mounted = []

    def mount(kib, options=""):
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={kib}k{options}", "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("a small disk can be mounted by root only")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk, kib_left=0):
    """Fills a disk up, but for so many KiB."""
    space = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(max(0, space.f_bavail * space.f_frsize - 1024 * kib_left)))


@pytest.mark.slow
def test_a_disk_that_fills_up_costs_nothing(small_disk, half, tiny_run):
    """At every place where training writes: whatever the space that is left, one line, and then the same bits."""
    disk = small_disk(20_000)
    seen = set()
    for kib_left in (0, 4, 40, 100, 200, 400, 800, 1200, 1600):
        out = disk / "run"
        shutil.copytree(half, out)
        fill(disk, kib_left)
        result = invoke(*resume(out))
        if result.exit_code:
            line = result.output.strip().splitlines()[-1]
            assert isinstance(result.exception, SystemExit), result.exception
            assert "No space left on device" in line
            assert "free" in line
            seen.add(Path(line.split(":")[1].strip()).suffix)
            assert not list(out.rglob(".*.tmp"))
            assert pointer(out)["step"] in (2, 4)
        (disk / "ballast").unlink()
        again = invoke(*resume(out))
        assert again.exit_code == 0, again.output
        assert same_as_whole(out, tiny_run)
        shutil.rmtree(out)
    assert len(seen) >= 3, seen  # the disk was full for several of the files


@pytest.mark.parametrize("name", ["rca", "traverse", "fid", "pretrain", "export", "sample", "train-curves", "sweep"])
def test_a_full_disk_is_one_line(small_disk, name, tiny_run, tiny_model, classifier_file):
    disk = small_disk(200)
    out = ["--out", disk / "out"]
    extractor = ["--feature-extractor", "lenet-digits", "--weights", classifier_file]
    words = {
        "rca": ["rca", tiny_run, "--pairs", 8, *out],
        "traverse": ["traverse", tiny_run, "--pairs", 8, "--examples", 1, *out],
        "fid": ["fid", tiny_run, "--samples", 64, *extractor, "--cache", disk / "cache", *out],
        "pretrain": ["pretrain", "digits16", *OPTIONS, *out],
        "export": ["mos", "export", tiny_run, "--assessors", 1, "--examples", 1, "--controls", 0, *out],
        "sample": ["sample", tiny_model, "--count", 2, "--steps", 1, *out],
        "train-curves": ["train-curves", tiny_run, *out],
        "sweep": ["vram-sweep", "digits16", *OPTIONS, "--m", "2", *out],
    }[name]
    fill(disk)
    line = refused(*words)
    assert "No space left on device" in line
    assert "free some space" in line or "free space" in line


def test_a_folder_that_cannot_be_written_is_one_line(small_disk, half, tiny_run, tiny_model):
    disk = small_disk(20_000)
    shutil.copytree(half, disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert "Read-only file system" in refused(*resume(disk / "run"))
    line = refused("rca", tiny_run, "--pairs", 8, "--out", disk / "rca")
    assert f"{disk / 'rca'}: cannot be made (Read-only file system): choose another --out" in line
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert invoke(*resume(disk / "run")).exit_code == 0
    assert same_as_whole(disk / "run", tiny_run)


# Numbers and memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path, tiny_model, tiny_run, value):
    weights = {name: tensor.float() for name, tensor in load_file(tiny_model / "model.safetensors").items()}
    name = next(name for name, tensor in weights.items() if tensor.ndim > 1)
    weights[name].view(-1)[3] = value
    torch.save(weights, tmp_path / "bad.pt")
    line = refused("train", "digits16", *tiny_options(), "--model", tmp_path / "bad.pt", "--out", tmp_path / "out")
    assert f"{tmp_path / 'bad.pt'}: {name} holds NaN or infinity" in line
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    with safe_open(run / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    save_file(weights, run / "model.safetensors", metadata)
    written_again(run)
    assert f"{run / 'model.safetensors'}: {name} holds NaN or infinity" in refused("rca", run)
    assert not (tmp_path / "out").exists()


def test_a_step_that_ruins_the_weights_does_not_replace_the_checkpoint(half, monkeypatch):
    real = module.train_step

    def ruinous(experiment, model, trained, *arguments):
        row = real(experiment, model, trained, *arguments)
        if arguments[-1] == 3:
            trained.shift_block.out_weight.data.view(-1)[0] = float("nan")
        return row  # finite: it was measured before

    before = pointer(half)
    with monkeypatch.context() as patch:
        patch.setattr(module, "train_step", ruinous)
        line = refused(*resume(half))
    assert "step 4: shift_block.out_weight holds NaN or infinity: the last good checkpoint stays" in line
    assert pointer(half) == before


def test_weights_too_large_for_float16_are_not_written(tmp_path, tiny, tiny_model):
    model = load_model(tiny_model, tiny)
    with torch.no_grad():
        next(model.parameters()).fill_(1e6)
    with pytest.raises(HBenchError, match=r"model as float16: .* holds NaN or infinity"):
        save_weights(tmp_path / "model.safetensors", model, tiny, "model", "float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_in_the_middle_of_training(half, tiny_run, monkeypatch, error):
    real = training_step.train_discriminator

    def exhausted(*arguments):
        if exhausted.calls == 1:
            raise error
        exhausted.calls += 1
        return real(*arguments)

    exhausted.calls = 0
    before = pointer(half)
    with monkeypatch.context() as patch:
        patch.setattr(training_step, "train_discriminator", exhausted)
        line = refused(*resume(half))
    assert exhausted.calls == 1  # a step was done, the next failed
    assert line.startswith("Error: out of memory: ")
    for knob in (
        "discovery.batch_size",
        "discovery.memory_budget",
        "discovery.checkpoint_blocks",
        "discovery.strategy",
    ):
        assert knob in line
    assert '"hbench plan EXPERIMENT"' in line
    assert str(error).splitlines()[0] in line
    assert pointer(half) == before
    result = invoke(*resume(half, "--set", "discovery.strategy='torch-checkpoint'"))  # as the line says
    assert result.exit_code == 0, result.output
    assert load_file(half / "shift_block.safetensors").keys() == load_file(tiny_run / "shift_block.safetensors").keys()


@pytest.mark.slow
def test_out_of_memory_and_resumed_as_it_was_ends_with_the_same_bits(half, tiny_run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            training_step, "train_discriminator", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("gone"))
        )
        refused(*resume(half))
    assert invoke(*resume(half)).exit_code == 0
    assert same_as_whole(half, tiny_run)


def test_out_of_memory_elsewhere_names_the_device(tmp_path, tiny_run, monkeypatch):
    monkeypatch.setattr(
        "hbench.evaluation.rca.rca", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("gone"))
    )
    assert "out of memory: choose another --device (gone)" in refused("rca", tiny_run, "--out", tmp_path / "rca")


# Leftovers ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_cell_of_a_killed_sweep_ends_with_it(tmp_path):
    words, _ = command("sweep", tmp_path / "out", None, None, None)
    process = start_command(words, tmp_path / "log")
    cell = []
    while not cell and process.is_alive():
        time.sleep(0.001)
        with suppress(OSError):  # others come and go
            cell = [
                p
                for p in children(process.pid)
                if b"hbench.evaluation.sweep_cells" in Path(f"/proc/{p}/cmdline").read_bytes()
            ]
    time.sleep(0.2)
    process.kill()  # while the cell still imports
    process.join()
    assert cell
    assert all_gone(cell)


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    own = temporary_name(tmp_path / "a.png").name
    living, dead = (own.replace(str(os.getpid()), str(pid)) for pid in (process.pid, 999999999))
    names = [living, dead, ".b.elsewhere.999999999.tmp", ".hidden", ".notes.tmp", "c.999999999.tmp"]
    for folder in (tmp_path, tmp_path / "samples"):
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).touch()
    try:
        with claimed_folder(tmp_path, overwrite=True):
            assert (tmp_path / LOCK).read_text() == str(os.getpid())
    finally:
        process.kill()
        process.wait()
    kept = sorted(name for name in names if name != dead)
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == kept
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == kept


@pytest.mark.slow
def test_a_damaged_cache_is_named(tmp_path, tiny_run, classifier_file):
    extractor = ["--feature-extractor", "lenet-digits", "--weights", classifier_file, "--cache", tmp_path / "cache"]
    words = ["fid", tiny_run, "--samples", 64, *extractor, "--quiet", "--out"]
    assert invoke(*words, tmp_path / "a").exit_code == 0
    (file, *_) = (tmp_path / "cache" / "features").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    line = refused(*words, tmp_path / "b")
    assert f"{file}: damaged" in line
    assert "remove it, and it will be made again" in line
    file.write_bytes(whole)
    assert invoke(*words, tmp_path / "b").exit_code == 0
    picture = next((tmp_path / "cache" / "samples").rglob("000007.png"))
    picture.write_bytes(picture.read_bytes()[:40])
    line = refused(*words, tmp_path / "c")
    assert f"an image is damaged (cannot identify image file '{picture}')" in line
