"""Preparing a bundle on the machine: what is made, when it is trusted, and what happens when it cannot be made."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from edge_runtime import Budget, EdgeModel, sense
from edge_runtime.backends import (
    RefusedError,
    SessionOptions,
    compile_bundle,
    is_prepared,
    open_compiled,
    runtime_versions,
)
from edge_runtime.backends.base import Array
from edge_runtime.backends.onnx import compiled, latest
from edge_runtime.backends.onnx import session as session_module
from edge_runtime.backends.onnx.compile import SPECIAL_BYTES, sessions_that_fit
from edge_runtime.backends.onnx.compiled import KEPT, CompiledSession
from edge_runtime.backends.onnx.prepare import RECORD, SKELETON, TENSORS
from edge_runtime.bundle import Bundle
from edge_runtime.errors import BackendError, GateError
from edge_runtime.gates import Gates
from edge_runtime.model.compile import open_quickest
from edge_runtime.state import BUILDING, KEPT_FOLDERS, StateDir
from tests.support.tiny import SPACE, tiny_bundle, tiny_reference

OPTIONS = SessionOptions()
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny.nnf")


@pytest.fixture(scope="module")
def prepared(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    compile_bundle(bundle, OPTIONS, folder, key="k")
    return folder


@pytest.fixture
def session(bundle: Bundle, prepared: Path) -> Iterator[CompiledSession]:
    opened = CompiledSession(prepared, bundle.manifest, OPTIONS, form="crossing", specialises=True)
    yield opened
    opened.close()


def image(batch: int = 1, seed: int = 0) -> dict[str, Array]:
    return {"image": np.random.default_rng(seed).standard_normal((batch, 3, 16, 16)).astype(np.float32)}


def load(bundle: Bundle, state: Path) -> EdgeModel:
    return EdgeModel.load(bundle.source, state_dir=state, budget=Budget(), threads=1)


def wait_for(session: CompiledSession, gates: Gates) -> None:
    deadline = time.monotonic() + 30
    while gates not in session.specialised and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gates in session.specialised


def answers(model: EdgeModel) -> None:
    for gates in SPACE.enumerate():
        np.testing.assert_allclose(
            model.infer(image()["image"], gates)["logits"],
            tiny_reference(gates, image()["image"]),
            rtol=1e-3,
            atol=1e-4,
        )


# What is made.


def test_the_record_says_what_was_made_and_proved(prepared: Path) -> None:
    record = json.loads((prepared / RECORD).read_text())
    assert record["form"] in ("crossing", "dump", "extended")
    assert record["error"] <= 1e-4
    assert record["refused"] == {}
    assert record["gain"] > 0, "a specialised session was made and compared"
    assert set(record["files"]) == {SKELETON, TENSORS}


@pytest.mark.parametrize(
    ("session_bytes", "kept"),
    [(1, KEPT), (SPECIAL_BYTES // KEPT, KEPT), (SPECIAL_BYTES // 2, 2), (SPECIAL_BYTES, 1), (10 * SPECIAL_BYTES, 1)]
    + [(unknown, KEPT) for unknown in (None, 0, -1, "many", 1.5)],
)
def test_as_many_specialised_sessions_stay_as_fit(session_bytes: object, kept: int) -> None:
    assert sessions_that_fit(session_bytes) == kept


def test_what_a_specialised_session_takes_is_measured_where_the_model_is_prepared(prepared: Path) -> None:
    record = json.loads((prepared / RECORD).read_text())
    assert 0 < record["session_bytes"] < 32 << 20, "a small network without a copy of its weights"


def test_where_memory_cannot_be_told_the_number_alone_counts(bundle: Bundle, prepared: Path) -> None:
    from edge_runtime.backends.onnx import prepare

    request = {"source": bundle.source, "folder": str(prepared), "threads": 1, "providers": list(OPTIONS.providers)}
    assert prepare.session_bytes(request, (), lambda: sense.Unknown("no /proc")) is None
    sizes = iter([100, 500, 700])
    assert prepare.session_bytes(request, (), lambda: next(sizes)) == 400


def test_a_large_session_leaves_room_for_the_active_one_alone(bundle: Bundle, prepared: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(prepared, tmp_path / "copy")
    record = json.loads((copy / RECORD).read_text())
    record |= {"session_bytes": SPECIAL_BYTES, "gain": 2.0}
    (copy / RECORD).write_text(json.dumps(record))
    session = open_compiled(bundle, OPTIONS, copy, key="k")
    subnets = list(SPACE.enumerate())
    with session.hold(subnets[:4]):
        assert set(subnets[:4]) <= set(session.specialised), "what is held is held"
    session.prefer(subnets[5])
    wait_for(session, subnets[5])
    deadline = time.monotonic() + 30
    while len(session.specialised) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert session.specialised == (subnets[5],)
    session.close()


@pytest.mark.parametrize("broken", ["keep_blocked", "decide_outside", "run_default_whole"])
def test_a_form_that_cannot_be_made_is_replaced_by_the_next(bundle: Bundle, tmp_path: Path, broken: str) -> None:
    from edge_runtime.backends.onnx import prepare

    request = {"source": bundle.source, "digest": bundle.digest, "folder": str(tmp_path), "threads": 1, "seed": 0}
    request |= {"providers": list(OPTIONS.providers), "key": "k"}
    with mock.patch.object(prepare, broken, side_effect=BackendError("no such layout")):
        record = prepare.prepare(request)
    assert record["form"] == "dump"
    assert "no such layout" in record["refused"]["crossing"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("a library's own")])
def test_a_form_that_is_right_is_kept_where_measuring_it_fails(
    bundle: Bundle, tmp_path: Path, error: Exception
) -> None:
    from edge_runtime.backends.onnx import prepare

    request = {"source": bundle.source, "digest": bundle.digest, "folder": str(tmp_path), "threads": 1, "seed": 0}
    request |= {"providers": list(OPTIONS.providers), "key": "k"}
    answers: list[str] = []
    with (
        mock.patch.object(prepare, "session_bytes", side_effect=error),
        mock.patch.object(prepare.Path, "write_text", autospec=True, side_effect=write_but_no_proc),
    ):
        prepare.main(request, answers.append, lambda: 0)
    assert json.loads(answers[-1]) == {"form": "crossing"}
    assert json.loads((tmp_path / RECORD).read_text())["session_bytes"] is None
    with mock.patch.object(prepare, "_ratio", side_effect=error):
        assert prepare.prepare(request)["gain"] == 0.0


def write_but_no_proc(path: Path, text: str, encoding: str = "utf-8") -> int:
    """The child offers itself to the kernel for killing; this process does not."""
    return 0 if str(path).startswith("/proc") else path.write_bytes(text.encode(encoding))


def test_a_form_that_answers_wrongly_is_never_used(bundle: Bundle, tmp_path: Path) -> None:
    from edge_runtime.backends.onnx import prepare

    def spoil(model: Any, shapes: Any) -> None:
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
        bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) + 0.5).astype(np.float32).tobytes()

    request = {"source": bundle.source, "digest": bundle.digest, "folder": str(tmp_path), "threads": 1, "seed": 0}
    request |= {"providers": list(OPTIONS.providers), "key": "k"}
    with mock.patch.object(prepare, "keep_blocked", side_effect=spoil):
        record = prepare.prepare(request)
    assert record["form"] == "dump"
    assert "differ" in record["refused"]["crossing"]


# When it is trusted.


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-1]),
        lambda f: (f / TENSORS).write_bytes(b"\0" * (f / TENSORS).stat().st_size),
        lambda f: (f / SKELETON).write_bytes(b""),
        lambda f: (f / SKELETON).unlink(),
        lambda f: (f / RECORD).unlink(),
        lambda f: (f / RECORD).write_text("{"),
        lambda f: (f / RECORD).write_text("[]"),
        lambda f: (f / RECORD).write_text((f / RECORD).read_text().replace('"key": "k"', '"key": "other"')),
        lambda f: (f / RECORD).write_text((f / RECORD).read_text().replace('"gain": ', '"gain": "x", "was": ')),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused(bundle: Bundle, prepared: Path, tmp_path: Path, damage: Any) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    open_compiled(bundle, OPTIONS, copy, key="k").close()
    damage(copy)
    with pytest.raises(BackendError):
        open_compiled(bundle, OPTIONS, copy, key="k")


def test_the_second_load_takes_what_the_first_one_made(bundle: Bundle, tmp_path: Path) -> None:
    with load(bundle, tmp_path) as model:
        assert "prepared on this machine" in model.stats().form
        answers(model)
    made = sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.glob("compiled-*/*"))
    assert len(made) == 3
    with load(bundle, tmp_path) as model:
        answers(model)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.glob("compiled-*/*")) == made


@pytest.mark.parametrize("name", [SKELETON, TENSORS, RECORD])
def test_a_damaged_cache_is_made_again(bundle: Bundle, tmp_path: Path, name: str) -> None:
    load(bundle, tmp_path).close()
    (entry,) = tmp_path.glob("compiled-*")
    (entry / name).write_bytes(b"nonsense")
    with load(bundle, tmp_path) as model:
        assert "prepared on this machine" in model.stats().form
        answers(model)


def test_another_runtime_or_other_threads_have_their_own(bundle: Bundle, tmp_path: Path) -> None:
    state, versions = StateDir.open(tmp_path), runtime_versions()
    for options, known in (
        (OPTIONS, versions),
        (OPTIONS, versions | {"onnxruntime": "0.1"}),
        (SessionOptions(threads=2), versions),
    ):
        session, _ = open_quickest(bundle, options, state, known)
        session.close()
    assert len(list(tmp_path.glob("compiled-*"))) == 3


def test_what_another_user_made_or_may_change_is_not_loaded(bundle: Bundle, tmp_path: Path) -> None:
    load(bundle, tmp_path).close()
    (entry,) = tmp_path.glob("compiled-*")
    (entry / TENSORS).chmod(0o666)
    with load(bundle, tmp_path) as model:
        assert model.stats().backend == "onnxruntime-portable"
        assert "another user" in model.stats().form
        answers(model)


@pytest.mark.parametrize("record", ["[" * 200_000, "9" * 5000, "x" * (2 << 20)])
def test_a_hostile_record_is_made_again(bundle: Bundle, tmp_path: Path, record: str) -> None:
    load(bundle, tmp_path).close()
    (entry,) = tmp_path.glob("compiled-*")
    (entry / RECORD).write_text(record)
    with load(bundle, tmp_path) as model:
        assert "prepared on this machine" in model.stats().form


def test_a_file_in_the_place_of_the_folder_makes_way(bundle: Bundle, tmp_path: Path) -> None:
    load(bundle, tmp_path).close()
    (entry,) = tmp_path.glob("compiled-*")
    shutil.rmtree(entry)
    entry.write_text("no folder")
    with load(bundle, tmp_path) as model:
        assert "prepared on this machine" in model.stats().form


def test_only_the_last_few_are_kept(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path)
    for number in range(KEPT_FOLDERS + 3):
        state.folder(f"thing-{number}", lambda folder: None)
    assert len(list(tmp_path.glob("thing-*"))) == KEPT_FOLDERS


# When it cannot be made.


def test_without_a_state_directory_the_portable_form_serves(bundle: Bundle) -> None:
    session, reason = open_quickest(bundle, OPTIONS, StateDir(None, "none"), {})
    assert session.name == "onnxruntime-portable"
    assert "no state directory" in reason
    session.close()


def test_a_bundle_that_is_gone_or_changed_meanwhile_is_not_prepared(bundle: Bundle, tmp_path: Path) -> None:
    other = tiny_bundle(tmp_path / "other.nnf", seed=5)
    stale = Bundle(bundle.manifest, bundle.digest, bundle.model_bytes, bundle.weights, other.source)
    session, reason = open_quickest(stale, OPTIONS, StateDir.open(tmp_path / "state"), {})
    assert session.name == "onnxruntime-portable"
    assert "changed" in reason
    session.close()
    assert list((tmp_path / "state").glob("compiled-*")) == []


def test_a_full_disk_costs_the_speed_and_not_the_answer(bundle: Bundle, tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096));"
        "from edge_runtime import EdgeModel, Budget;"
        f"model = EdgeModel.load({bundle.source!r}, state_dir={str(tmp_path)!r}, budget=Budget(), threads=1);"
        "print(model.stats().backend, '|', model.stats().form)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("onnxruntime-portable | portable: ")
    assert list(tmp_path.glob("compiled-*")) == []


def test_too_little_memory_costs_the_speed_and_not_the_process(bundle: Bundle, tmp_path: Path) -> None:
    with (
        mock.patch("edge_runtime.sense.memory_available_bytes", return_value=50 << 20),
        load(bundle, tmp_path) as model,
    ):
        assert model.stats().backend == "onnxruntime-portable"
        assert "MiB are free" in model.stats().form
        answers(model)


def test_a_child_that_runs_out_of_memory_is_no_disaster(bundle: Bundle, tmp_path: Path) -> None:
    # Libraries of other versions need another address space: somewhere on the way down it is too little for any.
    refusals = []
    for mib in (200, 64):
        folder = tmp_path / str(mib)
        folder.mkdir()
        refusals.append(refusal_within(mib, bundle, folder))
        assert refusals[-1] or is_prepared(folder, key="k")
    assert any(refusals)
    assert all("prepar" in refusal for refusal in refusals if refusal)


def refusal_within(mib: int, bundle: Bundle, folder: Path) -> str:
    """Why a child with so little address space prepares nothing; empty where it does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mib << 20, hard))
    try:
        compile_bundle(bundle, OPTIONS, folder, key="k", seconds=60)
    except BackendError as error:
        return error.message
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return ""


def test_what_failed_is_not_tried_again_at_every_start(bundle: Bundle, tmp_path: Path) -> None:
    failing = mock.patch("edge_runtime.model.compile.compile_bundle", side_effect=RefusedError("no such luck"))
    with failing as compiler:
        for _ in range(3):
            with load(bundle, tmp_path) as model:
                assert "no such luck" in model.stats().form
        assert compiler.call_count == 1
    with (
        mock.patch("edge_runtime.model.compile.time.time", return_value=time.time() + 1e6),
        load(bundle, tmp_path) as m,
    ):
        assert "prepared on this machine" in m.stats().form


def test_a_child_that_was_killed_is_tried_again_at_the_next_start(bundle: Bundle, tmp_path: Path) -> None:
    killed = subprocess.CompletedProcess([], -9, b"", b"")
    child = mock.patch("edge_runtime.backends.onnx.compile.subprocess.run", return_value=killed)
    with child, load(bundle, tmp_path) as model:
        assert "signal 9" in model.stats().form
    with load(bundle, tmp_path) as model:
        assert "prepared on this machine" in model.stats().form


@pytest.mark.parametrize("executable", [None, "", "/bin/echo", "/nonexistent/python"])
def test_without_a_python_to_start_the_portable_form_serves(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executable: str | None
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with load(bundle, tmp_path) as model:
        assert model.stats().backend == "onnxruntime-portable"


def test_the_child_takes_no_module_from_where_the_process_happens_to_be(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("open('taken', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with load(bundle, tmp_path / "state") as model:
        assert "prepared on this machine" in model.stats().form
    assert not (tmp_path / "taken").exists()


def test_a_provider_that_is_missing_is_an_error_and_not_the_cpu(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="NoSuchProvider"):
        EdgeModel.load(bundle.source, providers=["NoSuchProvider"], state_dir=tmp_path, budget=Budget())


def test_several_callers_at_once_make_it_once(bundle: Bundle, tmp_path: Path) -> None:
    state = StateDir.open(tmp_path)
    made: list[int] = []

    def make(folder: Path) -> None:
        made.append(1)
        time.sleep(0.2)
        (folder / "file").write_text("whole")

    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: state.folder("thing", make), range(4)))
    assert len(made) == 1
    assert all(folder is not None and (folder / "file").read_text() == "whole" for folder in folders)


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path)
    (tmp_path / f"{BUILDING}thing.dead.tmp").mkdir()
    state.folder("thing", lambda folder: None)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["thing"]


def test_a_kill_at_any_moment_of_preparing_leaves_a_next_load_that_works(bundle: Bundle, tmp_path: Path) -> None:
    script = (
        "from edge_runtime import EdgeModel, Budget;"
        f"EdgeModel.load({bundle.source!r}, state_dir={str(tmp_path)!r}, budget=Budget(), threads=1)"
    )
    rng = random.Random(0)
    for _ in range(6):
        for entry in tmp_path.glob("compiled-*"):
            shutil.rmtree(entry)
        child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.2, 1.5))
        child.send_signal(signal.SIGKILL)
        child.wait()
    with load(bundle, tmp_path) as model:
        assert "prepared on this machine" in model.stats().form
        answers(model)
    assert list(tmp_path.glob(f"{BUILDING}*.tmp")) == []


# The tiers.


def test_a_preferred_subnet_runs_alone_and_answers_the_same(session: CompiledSession) -> None:
    for gates in SPACE.enumerate():
        before = session.run(image(2), gates)["logits"]
        with session.hold([gates]):
            assert gates in session.specialised
            np.testing.assert_allclose(session.run(image(2), gates)["logits"], before, rtol=1e-4, atol=1e-5)
    assert len(session.specialised) <= KEPT


@pytest.mark.parametrize(
    ("version", "told"), [("1.20.3", False), ("1.21.0", True), ("1.31.1+cpu", True), ("2.0", True)]
)
def test_tensors_are_found_whatever_the_version_is_told(tmp_path: Path, version: str, told: bool) -> None:
    import onnx

    outside = onnx.TensorProto(name="w", data_location=onnx.TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value=TENSORS)
    outside.external_data.add(key="offset", value="0")
    graph = onnx.GraphProto(name="g", initializer=[outside, onnx.TensorProto(name="inside", raw_data=b"1234")])
    settings, before = mock.Mock(), onnx.ModelProto(graph=graph)
    data = session_module._with_tensors_in(tmp_path, before.SerializeToString(), settings, version)
    after = onnx.load_from_string(data).graph.initializer
    key = "session.model_external_initializers_file_folder_path"
    assert settings.mock_calls == ([mock.call.add_session_config_entry(key, str(tmp_path))] if told else [])
    assert [entry.value for entry in after[0].external_data] == [TENSORS if told else str(tmp_path / TENSORS), "0"]
    assert after[1] == graph.initializer[1]


@pytest.mark.parametrize(
    ("version", "disabled"),
    [("1.20.0", ["ConvActivationFusion"]), ("1.22.1", ["ConvActivationFusion"]), ("1.23.0", []), ("2.0.0", [])],
)
def test_what_aborts_on_a_clip_in_a_branch_is_not_run(version: str, disabled: list[str]) -> None:
    assert session_module._harmful_optimizers(version) == disabled


def test_a_file_of_the_same_name_where_the_process_is_is_not_taken(
    session: CompiledSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / TENSORS).write_bytes(bytes((session.folder / TENSORS).stat().st_size))
    monkeypatch.chdir(tmp_path)
    with session.hold([SPACE.default]):
        assert session.specialised == (SPACE.default,)


def test_held_ones_are_kept_together_whatever_is_swapped_meanwhile(session: CompiledSession) -> None:
    subnets = list(SPACE.enumerate())
    held, others = subnets[: KEPT + 3], subnets[KEPT + 3 :]
    with session.hold(held):
        for gates in others:
            session.prefer(gates)
        wait_for(session, others[-1])
        assert set(held) <= set(session.specialised)
    assert others[-1] in session.specialised
    assert len(session.specialised) <= KEPT


def test_many_threads_that_hold_have_what_they_hold(session: CompiledSession) -> None:
    subnets = list(SPACE.enumerate())

    def hold(number: int) -> bool:
        found = True
        for turn in range(6):
            mine = [subnets[(7 * number + turn) % len(subnets)], subnets[(7 * number + turn + 1) % len(subnets)]]
            with session.hold(mine):
                session.prefer(mine[0])
                found = found and set(mine) <= set(session.specialised)
        return found

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(hold, range(4)))


def test_what_cannot_be_specialised_is_served_by_the_gated_graph(
    session: CompiledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = SPACE.parse("1-1-1")
    wanted = session.run(image(), gates)["logits"]
    with monkeypatch.context() as patch:
        patch.setattr(session, "_specialise", mock.Mock(side_effect=MemoryError))
        session.prefer(gates)
        with session.hold([gates]):
            np.testing.assert_array_equal(session.run(image(), gates)["logits"], wanted)
        assert session.specialised == ()
    session.prefer(SPACE.default)
    wait_for(session, SPACE.default)


def test_no_thread_to_be_had_is_no_reason_to_fail(session: CompiledSession) -> None:
    with mock.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")):
        session.prefer(SPACE.default)
    session.prefer(SPACE.parse("1-1-1"))
    wait_for(session, SPACE.parse("1-1-1"))


def test_a_specialised_session_that_answers_otherwise_is_not_used(
    session: CompiledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, wrong = SPACE.parse("1-1-1"), session._specialise(SPACE.parse("2-2-2"))
    monkeypatch.setattr(session, "_specialise", lambda gates: wrong)
    with session.hold([right]):
        assert session.specialised == ()


def test_the_background_makes_what_was_wanted_last(session: CompiledSession) -> None:
    subnets = list(SPACE.enumerate())
    for gates in subnets:
        session.prefer(gates)
    wait_for(session, subnets[-1])
    assert len(session.specialised) <= KEPT + 1


def test_preferring_while_others_run_never_changes_an_answer(session: CompiledSession) -> None:
    subnets = [SPACE.parse(text) for text in ("full", "1-1-1", "2-3-0", "0-2-2")]
    wanted = {gates: session.run(image(), gates)["logits"] for gates in subnets}
    stop, wrong = threading.Event(), []

    def infer(number: int) -> int:
        count = 0
        while not stop.is_set():
            gates = subnets[(number + count) % len(subnets)]
            if not np.allclose(session.run(image(), gates)["logits"], wanted[gates], rtol=1e-4, atol=1e-5):
                wrong.append(str(gates))
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(infer, number) for number in range(3)]
        for turn in range(60):
            session.prefer(subnets[turn % len(subnets)])
            time.sleep(0.005)
        stop.set()
        assert min(run.result() for run in runs) > 0
    assert wrong == []


def test_no_descriptor_and_no_thread_is_left_behind(session: CompiledSession) -> None:
    def grown() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    subnets = list(SPACE.enumerate())
    with session.hold(subnets[:1]):
        before = grown()
    for gates in subnets * 2:
        with session.hold([gates]):
            pass
    assert grown() == before


def test_a_session_that_is_closed_while_one_is_made_keeps_nothing(
    session: CompiledSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go_on, make = threading.Event(), threading.Event(), session._specialise

    def slow(gates: Gates) -> object:
        made = make(gates)
        began.set()
        assert go_on.wait(30)
        return made

    monkeypatch.setattr(session, "_specialise", slow)
    monkeypatch.setattr(compiled, "CLOSE_SECONDS", 0.05)
    monkeypatch.setattr(latest, "STOP_SECONDS", 0.05)
    session.prefer(SPACE.parse("1-1-1"))
    session.run(image(), SPACE.parse("1-1-1"))
    assert began.wait(30)
    session.close()  # returns although it is still being made
    go_on.set()
    deadline = time.monotonic() + 30
    while any(thread.name == "nnf-edge-specialise" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert session.specialised == ()
    assert threading.active_count() == 1


def test_a_closed_session_refuses_to_run_and_does_not_mind_being_preferred(session: CompiledSession) -> None:
    session.close()
    session.close()
    session.prefer(SPACE.default)
    with session.hold([SPACE.default]):
        assert session.specialised == ()
    with pytest.raises(BackendError, match="closed"):
        session.run(image(), SPACE.default)


def test_gates_of_another_model_cannot_be_preferred(session: CompiledSession) -> None:
    from tests.support.scripted import SPACE as OTHER

    with pytest.raises(GateError):
        session.prefer(OTHER.default)


def test_a_swap_prefers_the_new_subnet(bundle: Bundle, tmp_path: Path) -> None:
    with load(bundle, tmp_path) as model:
        session = model._session
        assert isinstance(session, CompiledSession)
        session.specialises = True  # on a network of a few microseconds it may not pay
        gates = model.space.parse("1-1-1")
        model.swap(gates)
        wait_for(session, gates)
        answers(model)
