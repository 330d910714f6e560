"""What is in the wheel, and what the installed command loads before it is asked to do anything."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_WHEEL_BYTES = 12 * 2**20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="building the wheel needs hatchling (extra 'test')")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("nnf_edge-*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def _run_from(folder: Path, program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program that sees the unpacked wheel first, as an installation without the repository would."""
    head = f"import sys; sys.path.insert(0, {str(folder)!r}); "
    return subprocess.run(
        [sys.executable, "-c", head + program, *words], cwd=folder, capture_output=True, text=True, timeout=120
    )


def test_wheel_is_small_enough_for_a_memory_card(wheel: Path) -> None:
    assert wheel.stat().st_size <= MAX_WHEEL_BYTES


def test_wheel_holds_profiles_and_assets_and_nothing_of_the_workshop(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name for name in names if not name.endswith("/")}
    assert {"edge_runtime/assets/demo.nnf", "edge_runtime/assets/demo_images.npz", "edge_runtime/py.typed"} <= shipped
    profiles = {path.name for path in (ROOT / "profiles").glob("*.yaml")}
    assert profiles
    assert {f"edge_runtime/_profiles/{name}" for name in profiles} <= shipped
    tops = {name.split("/")[0] for name in shipped}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edge_runtime", "builder"}
    assert [name for name in shipped if name.endswith("licenses/LICENSE")]


def test_shipped_profiles_are_found_without_the_repository(unpacked: Path) -> None:
    ran = _run_from(
        unpacked, "from edge_runtime.profiles import load_profile; print(load_profile('generic-x86_64').name)"
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "generic-x86_64"


HELP = """
import json
from edge_runtime.cli import main
code = main(sys.argv[1:])
heavy = ("numpy", "onnxruntime", "onnx", "torch", "psutil", "PIL", "yaml", "builder")
print(json.dumps([code, [name for name in heavy if name in sys.modules]]))
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["benchmark", "--help"], ["demo", "--help"], []])
def test_help_loads_neither_numpy_nor_an_inference_library(unpacked: Path, words: list[str]) -> None:
    ran = _run_from(unpacked, HELP, *words)
    assert json.loads(ran.stdout.splitlines()[-1]) == [0, []], ran.stderr


def test_importing_the_library_loads_no_native_inference_library(unpacked: Path) -> None:
    program = "import edge_runtime; print([n for n in ('torch', 'onnx', 'onnxruntime') if n in sys.modules])"
    assert _run_from(unpacked, program).stdout.strip() == "[]"


def test_one_version_everywhere(wheel: Path) -> None:
    import edge_runtime

    top = re.search(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert top is not None
    assert top[1] == edge_runtime.__version__ == wheel.name.split("-")[1]


def test_every_verb_of_the_makefile_says_what_it_does() -> None:
    verbs = re.findall(r"^([a-z]+):(?!=)(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, _ in verbs} >= {"demo", "test", "bench", "clean"}
    assert [name for name, rest in verbs if "## " not in rest] == []
