import subprocess
import sys

import pytest

from builder.cli import _parser, _repeatable, main
from edge_runtime.measure import machine_lock

pytestmark = pytest.mark.builder


def test_help_loads_neither_numpy_nor_torch():
    code = "import sys, builder.cli; builder.cli.main(['--help']); print({'numpy', 'torch', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "nnf-build demo" in done.stdout
    assert done.stdout.endswith("set()\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "nothing"),
        (["demo", "--seed", "-1"], "--seed"),
        (["demo", "--threads", "0"], "threads"),
        (["runway", "--wor", "x"], "--wor"),
    ],
)
def test_what_cannot_be_meant_exits_2_and_says_where_to_look(words, said, capsys):
    assert main(words) == 2
    text = capsys.readouterr().err
    assert said in text
    assert "--help" in text


def test_without_a_verb_the_help_is_shown(capsys):
    assert main([]) == 0
    assert "runway" in capsys.readouterr().out


def test_without_torch_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo"]) == 5
    assert "pip install 'nnf-edge[build]'" in capsys.readouterr().err


def test_a_recipe_without_its_data_says_which_option_is_missing(monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch")
    monkeypatch.delenv("NNF_DATA", raising=False)
    monkeypatch.setattr("edge_runtime.measure.machine_lock", lambda what: machine_lock(what, folder=tmp_path))
    assert main(["runway", "--work", str(tmp_path / "work")]) == 2
    assert "--data" in capsys.readouterr().err
    assert main(["runway", "--work", str(tmp_path / "work"), "--data", str(tmp_path / "none")]) == 2
    assert "fod_a_224px.npz" in capsys.readouterr().err


def test_it_does_not_run_beside_a_benchmark(monkeypatch, tmp_path, capsys):
    pytest.importorskip("torch")
    monkeypatch.setattr("edge_runtime.measure.machine_lock", lambda what: machine_lock(what, folder=tmp_path))
    with machine_lock("nnf-edge benchmark", folder=tmp_path):
        assert main(["demo", "--work", str(tmp_path / "work")]) == 6
    assert "nnf-edge benchmark" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_the_provenance_names_no_path_of_this_machine(tmp_path):
    words = ["runway", "--data", str(tmp_path), "--work", str(tmp_path / "w"), "--out", str(tmp_path / "o.nnf")]
    arguments = _parser().parse_args([*words, "--seed", "3", "--dry-bright-only"])
    assert _repeatable(arguments) == "nnf-build runway --data DIR --dry-bright-only --seed 3"
