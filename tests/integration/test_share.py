"""Runs as small folders for others: exported, opened elsewhere, and put on the Hugging Face Hub."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
import torch
import yaml
from command_line import copy_of_weights, invoke, refused, snapshot
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from safetensors.torch import load_file

import hbench
from hbench.errors import HBenchError
from hbench.evaluation.rca import RCA
from hbench.models.shift import FixedDirections
from hbench.reporting.share import FILES, card, share
from hbench.store import hub
from hbench.store.directions_file import read_directions
from hbench.store.names import add_names
from hbench.store.run import load_run
from hbench.store.run_files import ROLES
from hbench.store.shipped import SHIPPED

NAMES = {0: "a | b", 1: '<img src=x onerror="alert(1)"> [x](http://x) `c`', 2: "größer → 大"}
"""Names that would break a table, run in a page, or be lost in an encoding."""


def done(*words):
    result = invoke(*words, "--quiet")
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tiny_run):
    """A run with names and an RCA, that was exported."""
    run = copy_of_weights(tiny_run, tmp_path_factory.mktemp("share") / "run")
    add_names(run, NAMES)
    done("rca", run, "--pairs", 12)
    done("export", run, "--samples", 4)
    return run


@pytest.fixture
def elsewhere(measured, tmp_path, monkeypatch):
    """The exported folder, alone in another place, with an odd name."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(measured / "export" / "share", tmp_path / "a 'run' of ü & co")).relative_to(tmp_path)


@pytest.fixture
def on_hub(measured, tmp_path, monkeypatch):
    """The exported folder in the Hub's cache, whose files are links, as the run "somebody/tiny"."""
    monkeypatch.chdir(tmp_path)
    entry = tmp_path / "hub" / "models--somebody--tiny"
    shutil.copytree(measured / "export" / "share", entry / "blobs")
    snapshot = entry / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for file in (entry / "blobs").iterdir():
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return "somebody/tiny"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def card_of(folder):
    return ModelCard((folder / "README.md").read_text(encoding="utf-8"))


def test_the_folder_holds_a_run_and_neither_checkpoints_nor_results(measured):
    held = names(measured / "export" / "share")
    assert set(held) == {*FILES, "mean.safetensors", "README.md", "preview.png"}
    for name in FILES:
        assert (measured / "export" / "share" / name).read_bytes() == (measured / name).read_bytes()
    assert read_directions(measured / "export" / "share" / "mean.safetensors").about.details["n"] == 4
    Image.open(measured / "export" / "share" / "preview.png").verify()


def test_it_gives_the_same_rca_in_another_place(measured, elsewhere):
    done("rca", elsewhere, "--pairs", 12)
    assert RCA.load(elsewhere / "rca") == RCA.load(measured / "rca")
    done("edit", elsewhere, elsewhere / "preview.png", "--directions", elsewhere / "mean.safetensors", "--sweep", 0)


def test_the_card_has_the_numbers_of_the_results(measured):
    found, card = RCA.load(measured / "rca"), card_of(measured / "export" / "share")
    low, high = found.interval
    assert f"| RCA (chance 0.333) | {found.accuracy:.3f} | [{low:.3f}, {high:.3f}] | 12 pairs |" in card.text
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("rca", found.accuracy)
    assert result.metric_args == {"interval_95": [low, high], "n": 12}
    for caution in found.cautions():
        assert caution in card.text
    origin = json.loads((measured / "provenance.json").read_text())
    for word in (origin["command"], origin["versions"]["torch"], "CC BY 4.0", 'hbench.load_run("FOLDER")'):
        assert word in card.text


def test_the_metadata_are_as_the_hub_reads_them(measured):
    content = card_of(measured / "export" / "share").content
    values = yaml.safe_load(content.split("---\n")[1])
    assert values.keys() == {"license", "library_name", "pipeline_tag", "tags", "model-index"}
    assert (values["license"], values["library_name"]) == ("unknown", "hbench")
    assert values["pipeline_tag"] == "unconditional-image-generation"
    (index,) = values["model-index"]
    assert index["name"] == "Digits16-400-3-3-5"
    for result in index["results"]:
        assert result.keys() == {"task", "dataset", "metrics"}
        assert all({"type", "value"} <= metric.keys() for metric in result["metrics"])
    again = ModelCardData(**ModelCard(content).data.to_dict())
    assert again.license == "unknown"


def test_names_become_no_part_of_the_card(measured):
    text = card_of(measured / "export" / "share").text
    assert "| 0 | a \\| b |" in text
    assert "<img" not in text
    assert "[x](http" not in text
    assert "| 2 | größer → 大 |" in text


def test_results_of_other_weights_are_left_out(measured, tiny_run, tmp_path):
    run = load_run(tiny_run, device="cpu")
    other = copy_of_weights(measured, tmp_path / "other")
    shutil.copytree(measured / "rca", other / "rca")
    file = other / "rca" / "provenance.json"
    origin = json.loads(file.read_text())
    origin["weights_sha256"]["model"] = "0" * 64
    file.write_text(json.dumps(origin))
    out = share(run, tmp_path / "out", measured / "export" / "mean.safetensors", results=[other])
    assert "Nothing was measured on these weights." in card_of(out).text
    assert card_of(out).data.eval_results is None
    with pytest.raises(HBenchError, match="already holds results: choose another `out`"):
        share(run, out, measured / "export" / "mean.safetensors")
    (out / "names.txt").write_text("0: old\n")
    share(run, out, measured / "export" / "mean.safetensors", results=[measured], licence="cc0-1.0", overwrite=True)
    assert card_of(out).data.license == "cc0-1.0"
    assert not (out / "names.txt").exists()


def test_no_run_is_replaced_by_a_shared_one(measured, tmp_path):
    run, other = load_run(measured, device="cpu"), copy_of_weights(measured, tmp_path / "other")
    for out in (measured, other):
        before = snapshot(out)
        with pytest.raises(HBenchError, match="holds a run that is not a shared one: choose another `out`"):
            share(run, out, measured / "export" / "mean.safetensors", overwrite=True)
        assert snapshot(out) == before


def test_the_card_does_not_call_given_directions_found(measured):
    run = load_run(measured, device="cpu")
    given = replace(run, shift_block=FixedDirections(torch.zeros(run.K, 1, *run.model.h_shape), (0,)))
    said = [" ".join(card(each, [], "mean.safetensors", "x", "mit", 0).split()) for each in (run, given)]
    assert "grey. [hbench](https://github.com/hbench/hbench) found them without labels by [Unsupervised" in said[0]
    assert "found them" not in said[1]
    assert "They were given as a file, and [hbench]" in said[1]


@pytest.mark.parametrize("name", ["faces16", "mnist16"])
def test_the_shipped_runs_are_small(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("export", name, "--samples", 2)
    folder = tmp_path / "runs" / f"shipped-{name}" / "export" / "share"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6
    found = RCA.load(SHIPPED / name / "rca")
    card = card_of(folder)
    assert card.data.license == "mit"
    assert card.data.eval_results[0].metric_value == found.accuracy


def test_directions_of_a_file_are_no_run(measured, tiny_model, tmp_path):
    run = hbench.directions_run(measured / "export" / "mean.safetensors", tiny_model, device="cpu")
    with pytest.raises(HBenchError, match="share the file"):
        share(run, tmp_path / "out", measured / "export" / "mean.safetensors")


def test_a_strangers_folder_is_checked(elsewhere, bad, tmp_path):
    pickled = elsewhere / "shift_block.safetensors"
    whole = pickled.read_bytes()
    shutil.copy(bad, pickled)
    assert "not a safetensors file, or damaged" in refused("rca", elsewhere)
    pickled.write_bytes(whole)
    shutil.copyfile(elsewhere / "reconstructor.safetensors", pickled)
    assert refused("rca", elsewhere)
    pickled.unlink()
    pickled.symlink_to("/etc/hostname")
    assert "is a link out of its folder" in refused("rca", elsewhere)
    assert not (tmp_path / "owned").exists()


# The Hub ------------------------------------------------------------------------------------------------------------


def test_an_id_of_the_hub_is_a_run(measured, on_hub):
    done("rca", on_hub, "--pairs", 12)
    found = Path("runs/hub-somebody-tiny/rca")
    assert RCA.load(found) == RCA.load(measured / "rca")
    assert not Path("somebody").exists()
    run = load_run(on_hub, device="cpu")
    assert run.names == NAMES
    assert torch.equal(hbench.load_model(on_hub, device="cpu").out[2].weight, run.model.out[2].weight)
    done("traverse", on_hub, "--examples", 1, "--pairs", 6)
    done("sample", on_hub, "--samples", 1, "--steps", 2)
    assert Path("runs/tiny/sample/provenance.json").is_file()
    with pytest.raises(HBenchError, match="is of the Hugging Face Hub, and keeps its names"):
        add_names(on_hub, {0: "x"})


def test_its_folder_in_the_cache_is_one_too_and_stays_as_it_is(on_hub):
    snapshot = Path("hub", "models--somebody--tiny", "snapshots", "0" * 40)
    held = sorted(snapshot.iterdir())
    done("rca", snapshot, "--pairs", 6)
    assert sorted(snapshot.iterdir()) == held
    assert Path("runs/hub-somebody-tiny/rca/rca.json").is_file()
    (snapshot / "names.txt").unlink()
    (snapshot / "names.txt").symlink_to("/etc/hostname")
    assert "names.txt: is a link out of its folder" in refused("rca", on_hub)


def test_an_id_that_is_nowhere_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused("rca", "somebody/nothing")
    assert line == (
        "Error: somebody/nothing: no such file or folder, and the Hugging Face Hub cannot be reached, nor is it in its "
        "cache: give the folder of a run or model"
    )
    assert not list(tmp_path.iterdir())


def test_all_files_that_are_shared_are_fetched():
    assert {f"{role}.safetensors" for role in ROLES} | {"names.txt", "metrics.csv"} <= set(hub.OF_RUN)


class FakeHub:
    """A Hub in place of huggingface_hub.HfApi, that keeps what is uploaded; no test reaches the true one."""

    there: dict[str, list[str]] = {}  # noqa: RUF012
    calls: list[tuple[str, dict]] = []  # noqa: RUF012

    def whoami(self):
        return {"name": "somebody"}

    def repo_exists(self, name):
        return name in self.there

    def create_repo(self, name, **options):
        self.calls.append((name, options))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.there[repo_id] = names(folder_path)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    monkeypatch.setattr(FakeHub, "there", {})
    monkeypatch.setattr(FakeHub, "calls", [])
    return FakeHub


def test_a_push_uploads_the_folder_in_private_unless_it_shall_be_public(measured, fake, tmp_path):
    command = ["export", measured, "--samples", 2, "--push", "somebody/tiny"]
    said = done(*command, "--out", tmp_path / "out").splitlines()
    assert said[-1] == "https://huggingface.co/somebody/tiny"
    assert fake.there == {"somebody/tiny": names(tmp_path / "out" / "share")}
    assert fake.calls == [("somebody/tiny", {"private": True, "exist_ok": False})]
    assert 'hbench.load_run("somebody/tiny")' in card_of(tmp_path / "out" / "share").text
    again = refused(*command, "--out", tmp_path / "two")
    assert again == "Error: --push somebody/tiny: is there already: choose another --push, or add --overwrite"
    assert not (tmp_path / "two").exists()
    done(*command, "--out", tmp_path / "out", "--overwrite", "--public")
    assert fake.calls[1] == ("somebody/tiny", {"private": False, "exist_ok": True})


def test_what_keeps_a_push_is_said_before_the_work(measured, fake, tmp_path, monkeypatch):
    def failing(error):
        def fail(self, *_, **__):
            raise error

        return fail

    command = ["export", measured, "--samples", 2, "--out", tmp_path / "out"]
    assert refused(*command, "--public").endswith("--public goes with --push: give both, or leave it out")
    assert "is no licence as the Hugging Face Hub calls it" in refused(*command, "--licence", "MIT License")
    push = [*command, "--push", "somebody/tiny"]
    for error, said in (
        (httpx2.ConnectError("no route"), "cannot be reached: leave --push out"),
        (ConnectionError("offline"), "cannot be reached: leave --push out"),
        (
            HfHubHTTPError("401", response=httpx2.Response(401, request=httpx2.Request("GET", "https://x"))),
            'the Hub refuses the token: give another one with "hf auth login"',
        ),
    ):
        monkeypatch.setattr(fake, "whoami", failing(error))
        assert refused(*push).endswith(said)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "there is no token of the Hub: give one by HF_TOKEN" in refused(*push)
    assert not (tmp_path / "out").exists()


def test_an_id_that_cannot_be_is_refused(measured, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    line = refused("export", measured, "--push", "a/b/c d", "--out", tmp_path / "out")
    assert line == "Error: --push a/b/c d: is no id of the Hugging Face Hub: name it as OWNER/NAME"


def test_a_failed_upload_leaves_the_folder(measured, fake, tmp_path, monkeypatch):
    def fail(self, **_):
        raise OSError("the line went dead\nand more")

    monkeypatch.setattr(fake, "upload_folder", fail)
    line = refused("export", measured, "--samples", 2, "--out", tmp_path / "out", "--push", "somebody/tiny", "--quiet")
    folder = tmp_path / "out" / "share"
    assert line == (
        "Error: --push somebody/tiny: the upload failed (the line went dead): "
        f'"hf upload somebody/tiny {folder}" uploads the folder, which stays'
    )
    assert load_file(folder / "model.safetensors")
