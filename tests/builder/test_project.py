"""The commands for a developer's own network, on a network of a few channels; the walk-through is in tests/e2e."""

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from builder import checkpoint
from builder.cli import main
from builder.export import static_model
from builder.project.plan import TrainSettings, stage_configs
from builder.project.safetensors import read_safetensors
from edge_runtime.bundle import Bundle, write_bundle
from edge_runtime.errors import InputError
from edge_runtime.gates import GateSpace
from edge_runtime.measure import machine_lock

pytestmark = pytest.mark.builder

ROOT = Path(__file__).resolve().parents[2]
MODEL = """
import torch
from torch import nn


class Unit(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(32, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.BatchNorm2d(32)
        )

    def forward(self, x):
        return torch.relu(x + self.body(x))


def network():
    stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU())
    return nn.Sequential(stem, Unit(), Unit(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3))


def trained():
    torch.manual_seed(0)
    return network()


def number():
    return 3


def failing():
    raise RuntimeError("no such file")


def detector():
    return nn.Conv2d(3, 8, 3)


def wide(channels):
    return nn.Conv2d(3, channels, 3)


def choosy():
    return nn.Linear(7, 2)


class Chatty(Unit):
    def forward(self, x):
        print("answering")
        return super().forward(x)


def chatty():
    print("building")
    net = network()
    net[1].__class__ = Chatty
    return net


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, weights and images; the lock of the machine is one of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edge_runtime.measure.machine_lock", lambda what: machine_lock(what, folder=tmp_path))
    (tmp_path / "model.py").write_text(MODEL)
    sys.modules.pop("nnf_project_model", None)
    scope = {}
    exec(MODEL, scope)
    torch.save(scope["trained"]().state_dict(), tmp_path / "w.pt")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", images=rng.integers(0, 256, (40, 16, 16, 3), np.uint8), labels=np.arange(40) % 3)
    return tmp_path


BEGIN = ["elastify", "--model", "model.py:network", "--weights", "w.pt", "--data", "d.npz", "--input-size", "3x16x16"]


def build(*words, code=0, work="w"):
    assert main([*words, "--work", work]) == code


def latency_table(place):
    """A table of the fixture's supernet: each alternative costs a millisecond less than the one before."""
    from builder.project.project import Project
    from builder.project.settings import kept_settings
    from builder.runlog import RunLog

    project = Project(kept_settings(place / "w", {}), place / "w", RunLog())
    rows = [[float(group.size - index) for index in range(group.size)] for group in project.supernet.space.groups]
    return {"base_ms": 1.0, "entries_ms": rows, "p95_ratio": 1.1, "method": "timing", "error": 0.0}


def events(place, name):
    lines = [json.loads(line) for line in (place / "w" / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


def test_from_weights_to_a_bundle(place, capsys):
    build(*BEGIN, "--report", "json")
    assert json.loads(capsys.readouterr().out)["units"]
    build("train", "--epochs", "2", "--batch-size", "8")
    build("export", "--name", "mine")
    build("check")
    build("pack", "--out", "mine.nnf")
    bundle = Bundle.read(place / "mine.nnf")
    assert bundle.manifest.name == "mine"
    assert bundle.manifest.task.class_names == ("class0", "class1", "class2")
    assert str(place) not in json.dumps(bundle.manifest.provenance.command + bundle.manifest.provenance.data)
    assert {"mine.nnf", "check"} <= set(capsys.readouterr().out.replace(":", " ").split())
    assert len(events(place, "paths.epoch")) == 2


def test_train_says_how_often_the_likely_best_subnets_answer_as_the_network_does(place, capsys):
    build(*BEGIN)
    capsys.readouterr()
    build("train", "--epochs", "2", "--batch-size", "8")
    line = next(line for line in capsys.readouterr().out.splitlines() if "as the network does" in line)
    figures = events(place, "agreement.end")[-1]
    told = {float(share) / 100: float(part) for part, share in re.findall(r"([0-9.]+)% at ([0-9]+)%", line)}
    assert line.endswith(" of its multiply-accumulates")
    assert told
    assert told == {s: pytest.approx(100 * figures[f"at_{s:g}"], abs=0.06) for s in told}


def test_what_a_network_prints_does_not_mix_with_the_report(place, capsys):
    build("elastify", *BEGIN[3:], "--model", "model.py:chatty", "--report", "json")
    printed = capsys.readouterr()
    assert json.loads(printed.out)["units"]
    assert "building" in printed.err
    assert "answering" in printed.err


def test_a_network_with_nothing_to_elastify_gets_a_report(place, capsys):
    build(*BEGIN[:1], "--model", "model.py:linear", *BEGIN[5:], code=2)
    printed = capsys.readouterr()
    assert "elastic: 0.0%" in printed.out
    assert "no unit of this network can be made elastic" in printed.err
    assert (place / "w" / "report.txt").read_text() == printed.out
    assert json.loads((place / "w" / "report.json").read_text())["elastic_macs"] == 0


def test_the_user_says_what_units_are_offered(place, capsys):
    build(*BEGIN, "--widths", "0.5", "--window", "1", "--no-skip", "--storage-ratio", "3")
    report = json.loads((place / "w" / "report.json").read_text())
    assert {label for unit in report["units"] for label in unit["alternatives"]} == {"narrow50"}
    build("train", "--epochs", "1")
    for other, option in ((["--widths", "0.25"], "--widths"), (["--storage-ratio", "2"], "--storage-ratio")):
        build("elastify", *other, code=74)
        assert f"another {option}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("--widths", "1"),
        ("--widths", "0.5,0.5"),
        ("--widths", "a"),
        ("--widths", "0.5,0.496"),
        ("--window", "0"),
        ("--storage-ratio", "1"),
    ],
)
def test_offers_that_cannot_be_meant_are_refused(place, words):
    build(*BEGIN, *words, code=2)
    assert not (place / "w").exists()


def test_training_goes_on_in_the_precision_that_it_began_in(place, capsys):
    build(*BEGIN)
    build("train", "--epochs", "1", "--precision", "bf16")
    capsys.readouterr()
    build("train", "--precision", "fp32", code=74)
    assert "begun in bf16" in capsys.readouterr().err
    build("train")


def test_a_second_call_trains_nothing_and_gives_the_same(place):
    build(*BEGIN)
    build("train", "--epochs", "1")
    before, weights = len(events(place, "paths.epoch")), (place / "w" / "trained.pt").read_bytes()
    build(*BEGIN)
    build("train")
    assert len(events(place, "paths.epoch")) == before
    wanted, found = checkpoint.from_bytes(weights), checkpoint.load(place / "w" / "trained.pt")
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--seed", "1"], "--seed"),
        (["train", "--mean", "0.1,0.2,0.3"], "--mean"),
        (["elastify", "--input-size", "3x32x32"], "--input-size"),
        (["export", "--model", "model.py:trained"], "--model"),
        (["train", "--epochs", "9"], "length (1 epochs)"),
        (["train", "--batch-size", "4"], "batch size"),
        (["train", "--no-labels"], "labels"),
        (["train", "--latency", "here"], "latency"),
    ],
)
def test_other_settings_are_refused(place, capsys, words, said):
    build(*BEGIN)
    build("train", "--epochs", "1", "--augment", "none")
    capsys.readouterr()
    build(*words, code=74)
    assert said in capsys.readouterr().err


def test_weights_that_changed_are_refused(place, capsys):
    build(*BEGIN)
    state = torch.load(place / "w.pt")
    torch.save({name: value * 2 for name, value in state.items()}, place / "w.pt")
    build("elastify", "--weights", "w.pt", code=74)
    assert "another --weights" in capsys.readouterr().err


@pytest.mark.parametrize("labelled", [True, False])
def test_labels_are_not_needed(place, labelled):
    if not labelled:
        np.savez(place / "d.npz", images=np.load(place / "d.npz")["images"])
    build(*BEGIN)
    build("train", "--epochs", "1", *(["--no-labels"] if labelled else []))
    assert math.isfinite(events(place, "paths.end")[0]["loss"])


def test_paths_are_spread_over_latency_that_is_measured_here(place):
    build(*BEGIN)
    build("train", "--epochs", "1", "--latency", "here")
    table = json.loads((place / "w" / "latency.json").read_text())
    assert min(map(min, table["entries_ms"])) < max(map(max, table["entries_ms"]))
    assert json.loads((place / "w" / "train.json").read_text())["latency"] == "here"
    assert not (place / "w" / "latency").exists()
    (place / "other.json").write_text(json.dumps(table | {"entries_ms": [[1.0]]}))
    build(*BEGIN, work="v")
    build("train", "--latency", "other.json", code=2, work="v")
    assert not (place / "v" / "train.json").exists(), "a table that is of no use settles nothing"


def test_another_latency_table_is_refused_and_never_left_behind(place, capsys):
    build(*BEGIN)
    table = latency_table(place)
    for factor, name in ((1.0, "a.json"), (2.0, "b.json")):
        (place / name).write_text(json.dumps(table | {"base_ms": factor}))
    (place / "w" / "latency.json").write_text(json.dumps(table | {"base_ms": 9.0}))  # of a run that never began
    build("train", "--epochs", "1", "--latency", "a.json")
    assert json.loads((place / "w" / "latency.json").read_text())["base_ms"] == 1.0
    build("train", "--latency", "a.json")
    for other in ("b.json", "here"):
        capsys.readouterr()
        build("train", "--latency", other, code=74)
        assert "latency.json" in capsys.readouterr().err
    assert json.loads((place / "w" / "latency.json").read_text())["base_ms"] == 1.0


def test_a_latency_that_the_training_did_not_begin_with_is_not_measured(place):
    build(*BEGIN)
    build("train", "--epochs", "1")
    build("train", "--latency", "here", code=74)
    assert not (place / "w" / "latency.json").exists()


def test_minutes_become_steps_once(place):
    build(*BEGIN)
    build("train", "--minutes", "0.005")
    settled = json.loads((place / "w" / "train.json").read_text())
    assert settled["local_steps"] >= 1
    assert settled["asked"] == "0.005 minutes"
    build("train", "--minutes", "0.005")
    assert json.loads((place / "w" / "train.json").read_text()) == settled


def test_skips_alone_are_trained_in_no_time(place, capsys):
    build(*BEGIN, "--storage-ratio", "1.0001")
    build("train", "--minutes", "1")
    assert "nothing to train" in capsys.readouterr().out
    build("export", "--no-int8")
    build("pack", "--out", "skips.nnf")
    labels = {label for group in Bundle.read(place / "skips.nnf").manifest.space.groups for label in group.labels}
    assert labels == {"original", "skip"}


@pytest.mark.parametrize(
    "change", [{"batch_size": 0}, {"batch_size": "32"}, {"labels": "no"}, {"latency": 1}, {"augment": "wild"}]
)
def test_a_record_of_the_training_that_cannot_be_is_an_error(place, capsys, change):
    build(*BEGIN)
    build("train", "--epochs", "1")
    path = place / "w" / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    build("train", code=74)
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(("old", "new"), [("x + self.body(x)", "x"), ("torch.relu(x +", "torch.sigmoid(x +")])
def test_a_network_whose_code_was_changed_is_refused(place, capsys, old, new):
    build(*BEGIN)
    build("train", "--epochs", "1")
    capsys.readouterr()
    (place / "model.py").write_text(MODEL.replace(old, new))
    sys.modules.pop("nnf_project_model", None)
    for verb in ("train", "export"):
        build(verb, code=74)
        assert "answers otherwise" in capsys.readouterr().err
    (place / "model.py").write_text(f"# a comment\n{MODEL}")
    build("export", "--no-int8")


# -- what goes wrong before anything is begun ----------------------------------------------------------------------


def changed(**options):
    """The first command with other values; None leaves an option out."""
    words = dict(zip(BEGIN[1::2], BEGIN[2::2], strict=True)) | {
        f"--{k.replace('_', '-')}": v for k, v in options.items()
    }
    return ["elastify", *(word for option, value in words.items() if value is not None for word in (option, value))]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"model": None}, 2, "--model"),
        ({"data": None, "input_size": None}, 2, "--data, --input-size"),
        ({"model": "model.py"}, 2, "factory"),
        ({"model": "none.py:network"}, 2, "does not exist"),
        ({"model": "model.py:nothing"}, 2, "network"),
        ({"model": "model.py:number"}, 2, "a int"),
        ({"model": "no_such_package.module:f"}, 2, "no module"),
        ({"model": "model.py:failing", "weights": None}, 1, "no such file"),
        ({"model": "model.py:detector", "weights": None}, 2, "class logits"),
        ({"model": "model.py:choosy", "weights": None}, 1, "3x16x16"),
        ({"model": "syntax.py:f"}, 1, "SyntaxError"),
        ({"weights": "none.pt"}, 2, "none.pt"),
        ({"weights": "model.py"}, 2, "state dict"),
        ({"weights": "whole.pt"}, 2, "something else than tensors"),
        ({"weights": "empty.pt"}, 2, "it is empty"),
        ({"weights": "cut.pt"}, 2, "it is cut off"),
        ({"model": "model.py:wide", "weights": None}, 1, "without arguments"),
        ({"weights": "missing.pt"}, 2, "lacks 5.bias"),
        ({"weights": "more.pt"}, 2, "holds extra"),
        ({"weights": "shape.pt"}, 2, "shape [4]"),
        ({"weights": "nan.pt"}, 2, "NaN"),
        ({"data": "none"}, 2, "does not exist"),
        ({"data": "labels.npz"}, 2, "label 7"),
        ({"input_size": "1x16x16"}, 2, "channels"),
        ({"input_size": "16x16"}, 2, "CHANNELSxHEIGHTxWIDTH"),
        ({"std": "0,1,1"}, 2, "std"),
        ({"classes": "two.txt"}, 2, "2 class names for the 3 outputs"),
        ({"classes": "twice.txt"}, 2, "twice"),
        ({"classes": "none.txt"}, 2, "cannot be read"),
    ],
)
def test_one_line_and_a_hint_and_the_folder_is_not_claimed(place, capsys, options, code, said):
    state = torch.load(place / "w.pt")
    (place / "syntax.py").write_text("def f(:\n")
    torch.save(torch.nn.Linear(2, 2), place / "whole.pt")
    torch.save({k: v for k, v in state.items() if k != "5.bias"}, place / "missing.pt")
    (place / "empty.pt").touch()
    (place / "cut.pt").write_bytes((place / "w.pt").read_bytes()[:-100])
    torch.save(state | {"extra": torch.zeros(1)}, place / "more.pt")
    torch.save(state | {"5.bias": torch.zeros(4)}, place / "shape.pt")
    torch.save(state | {"5.bias": torch.full((3,), math.nan)}, place / "nan.pt")
    np.savez(place / "labels.npz", images=np.zeros((40, 16, 16, 3), np.uint8), labels=np.full(40, 7))
    for name, content in (("two.txt", "a\nb\n"), ("twice.txt", "a\na\nb\n")):
        (place / name).write_text(content)
    build(*changed(**options), code=code)
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert 2 <= len(error.strip().splitlines()) <= 3
    assert not (place / "w" / "settings.json").exists()
    build(*BEGIN)


@pytest.mark.parametrize("verb", ["train", "export", "check", "pack"])
def test_a_verb_before_its_turn_says_which_comes_first(place, capsys, verb):
    build(verb, code=74)
    assert "nnf-build elastify" in capsys.readouterr().err
    if verb != "train":
        build(*BEGIN)
        build(verb, code=74)
        assert f"nnf-build {'train' if verb == 'export' else 'export'}" in capsys.readouterr().err


def test_a_network_without_units_is_one_clear_error(place, capsys):
    (place / "plain.py").write_text(
        "from torch import nn\ndef f():\n    return nn.Sequential(nn.Flatten(), nn.Linear(768, 3))\n"
    )
    build(*changed(model="plain.py:f", weights=None), "--report", "json", code=2)
    captured = capsys.readouterr()
    assert "elastic" in captured.err
    assert json.loads(captured.out)["units"] == []


def test_an_export_that_was_changed_is_not_packed(place, capsys):
    build(*BEGIN)
    build("train", "--epochs", "1")
    build("export")
    weights = place / "w" / "export" / "weights.bin"
    weights.write_bytes(bytes(len(weights.read_bytes())))
    build("pack", code=74)
    assert "damaged" in capsys.readouterr().err
    assert not list(place.rglob("*.nnf"))


def test_a_damaged_copy_of_the_network_is_not_to_be_deleted(place, capsys):
    build(*BEGIN)
    path = place / "w" / "oracle.pt"
    path.write_bytes(path.read_bytes()[:-100])
    build("train", "--epochs", "1", code=74)
    said = capsys.readouterr().err
    assert "it is cut off" in said
    assert "another --work folder" in said
    assert "delete" not in said


def test_damaged_images_are_found_before_the_training(place, capsys):
    for index in range(40):
        folder = place / "images" / str(index % 3)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    build(*changed(data="images"))
    for path in (place / "images").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    build("train", "--epochs", "1", code=2)
    assert "cannot be read" in capsys.readouterr().err
    assert not list((place / "w").glob("*local*"))


def test_a_static_graph_that_is_not_the_network_is_found(place, capsys):
    build(*BEGIN)
    build("train", "--epochs", "1")
    build("export", "--no-int8")
    graph = place / "w" / "oracle.onnx"
    kept = graph.read_bytes()
    build("check")
    assert "its static graph is, too" in capsys.readouterr().out
    scope = {}
    exec(MODEL, scope)
    torch.manual_seed(5)
    graph.write_bytes(static_model(scope["network"]().eval(), torch.zeros(2, 3, 16, 16)))
    build("check", code=1)
    assert "static graph differs" in capsys.readouterr().err
    for content in (kept[:100], None):
        graph.write_bytes(content) if content else graph.unlink()
        build("check", code=74)
        assert "export it again" in capsys.readouterr().err


def test_the_size_of_a_bundle_in_a_folder_is_that_of_its_files(place, capsys):
    build(*BEGIN)
    build("train", "--epochs", "1")
    build("export")
    build("pack", "--out", "folder")
    assert (place / "folder").is_dir()
    said = float(re.search(r"([0-9.]+) MiB", capsys.readouterr().out.splitlines()[-1])[1])
    size = sum(path.stat().st_size for path in (place / "folder").iterdir())
    assert said == pytest.approx(size / 2**20, abs=0.1)
    assert said > 0


def test_an_export_with_and_without_8_bits_is_checked_as_what_it_is(place, capsys):
    build(*BEGIN)
    build("train", "--epochs", "1")
    build("export")
    assert "of them in 8 bits" in capsys.readouterr().out
    build("check")
    said = capsys.readouterr().out
    assert "those in 8 bits too, but for rounding" in said
    build("export", "--no-int8")
    assert "8 bits" not in capsys.readouterr().out
    build("pack", "--out", "plain.nnf")
    plain = Bundle.read(place / "plain.nnf")
    assert not any("int8" in label for group in plain.manifest.space.groups for label in group.labels)
    build("export")
    build("pack", "--out", "coded.nnf")
    coded = Bundle.read(place / "coded.nnf")
    assert any("int8" in label for group in coded.manifest.space.groups for label in group.labels)


def test_an_export_in_8_bits_is_checked_with_the_images_it_was_fitted_to(place, capsys):
    build(*BEGIN)
    build("train", "--epochs", "1")
    build("export")
    kept = dict(np.load(place / "d.npz"))
    np.savez(place / "d.npz", images=255 - kept["images"], labels=kept["labels"])
    for verb in ("check", "pack"):
        build(verb, code=74)
        said = capsys.readouterr().err
        assert "comes out otherwise" in said
        assert "export it again" in said
    build("export")
    build("pack")


def test_an_export_of_another_training_is_to_be_made_again(place, capsys):
    build(*BEGIN)
    build("train", "--epochs", "1")
    build("export", "--no-int8")
    build("check")
    for name in ("train.json", "local.pt", "paths.pt", "trained.pt"):
        (place / "w" / name).unlink()
    build("train", "--epochs", "2")
    for verb in ("check", "pack"):
        capsys.readouterr()
        build(verb, code=74)
        assert "not of the training that is there now" in capsys.readouterr().err
    build("export", "--no-int8")
    build("pack")


def test_an_export_of_another_version_is_to_be_made_again(place, capsys):
    build(*BEGIN)
    build("train", "--epochs", "1")
    build("export")
    kept = Bundle.read(place / "w" / "export")
    groups = (*kept.manifest.space.groups[:-1], dataclasses.replace(kept.manifest.space.groups[-1], name="other"))
    manifest = dataclasses.replace(kept.manifest, space=GateSpace(groups))
    write_bundle(place / "w" / "export", manifest, kept.model_bytes, kept.weights)
    build("check", code=74)
    assert "export it again" in capsys.readouterr().err


# -- weights files -------------------------------------------------------------------------------------------------


def as_safetensors(tensors):
    """Written by hand after the format's description."""
    header, data = {"__metadata__": {"by": "hand"}}, b""
    for name, value in tensors.items():
        content = value.numpy().tobytes()
        dtype = {torch.float32: "F32", torch.int64: "I64", torch.float16: "F16"}[value.dtype]
        header[name] = {
            "dtype": dtype,
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("form", ["safetensors", "wrapped", "parallel"])
def test_customary_forms_of_weights_are_read(place, form):
    state = torch.load(place / "w.pt")
    if form == "safetensors":
        (place / "v.safetensors").write_bytes(as_safetensors(state))
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": state}, place / "v.pt")
    else:
        torch.save({f"module._orig_mod.{name}": value for name, value in state.items()}, place / "v.pt")
    build(*changed(weights="v.safetensors" if form == "safetensors" else "v.pt"))
    kept = checkpoint.load(place / "w" / "oracle.pt")
    assert all(torch.equal(value, kept[name]) for name, value in state.items())


def broken(change):
    content = as_safetensors({"a": torch.ones(2, 3), "b": torch.ones(4)})
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(change(header)).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        as_safetensors({"a": torch.ones(2)})[:-1],
        broken(lambda header: []),
        broken(lambda header: header | {"a": {}}),
        broken(lambda header: header | {"a": header["a"] | {"dtype": "F8"}}),
        broken(lambda header: header | {"a": header["a"] | {"shape": [2, -3]}}),
        broken(lambda header: header | {"a": header["a"] | {"data_offsets": [16, 40]}}),
        broken(lambda header: header | {"b": header["b"] | {"data_offsets": [30, 46]}}),
        broken(lambda header: header | {"a": header["a"] | {"data_offsets": [-24, 0]}}),
        broken(lambda header: header | {"a": header["a"] | {"shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}),
    ],
)
def test_a_damaged_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    try:
        found = read_safetensors(tmp_path / "w.safetensors")
    except InputError:
        return
    # A header may lie about where a tensor begins; what is read is then inside the file and has its shape.
    assert {name: tuple(value.shape) for name, value in found.items()} == {"a": (2, 3), "b": (4,)}


# -- several processes ---------------------------------------------------------------------------------------------


MACHINE = """
import os, sys
from builder.cli import main
os.chdir(["." , "second"][int(os.environ["RANK"])])
sys.exit(main(sys.argv[1:]))
"""


def test_torchrun_trains_the_project_with_a_table_that_one_machine_has(place):
    build(*BEGIN)
    (place / "second").mkdir()
    shutil.copytree(place / "w", place / "second" / "w")
    (place / "table.json").write_text(json.dumps(latency_table(place)))
    (place / "machine.py").write_text(MACHINE)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "machine.py",
        "train", "--work", "w", "--epochs", "1", "--batch-size", "8", "--threads", "1", "--latency", "table.json",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("trained:") == 1
    assert events(place, "begin")[-1]["processes"] == 2
    assert (place / "w" / "trained.pt").exists()
    assert not (place / "second" / "w" / "latency.json").exists()
    build("train")  # goes on as one process: nothing is left to do
    assert len(events(place, "paths.epoch")) == 1


@pytest.mark.parametrize("batch_size", [8, 32, 128])
def test_learning_rates_grow_with_the_root_of_the_batch_size(batch_size):
    local, paths = stage_configs(TrainSettings(10, 10, "", batch_size), 10, 0)
    usual_local, usual_paths = stage_configs(TrainSettings(10, 10, ""), 10, 0)
    factor = (batch_size / 32) ** 0.5
    assert local.loop.learning_rate == pytest.approx(factor * usual_local.loop.learning_rate)
    assert paths.loop.learning_rate == pytest.approx(factor * usual_paths.loop.learning_rate)
    few, _ = stage_configs(TrainSettings(10, 10, "", 512).over(batch_size), 10, 0)  # fewer images than a batch
    assert few.loop.learning_rate == local.loop.learning_rate
