"""Energy budgets: the rail that feeds the board, and the choice among what was really measured on it.

No machine of ours has such a rail. Boards are folders of fixtures here, and the power file of a rail is rewritten for
each run of the scripted session, so that everything but the sensor's own silicon is the code that runs on a board.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime import sense
from edge_runtime.adaptation import AdaptJob, AdaptPlan, AdaptResult, Finals
from edge_runtime.adaptation.memory import Memory
from edge_runtime.errors import BudgetError, ResourceError, UsageError
from edge_runtime.evaluate import Evaluator
from edge_runtime.gates import Gates
from edge_runtime.inputs import normalise
from edge_runtime.model import EdgeModel
from edge_runtime.objectives import Budget
from edge_runtime.state import StateDir
from tests.edge_runtime.test_sense import tree
from tests.support.scripted import COST, PREPROCESSING, PRIOR, SPACE, scripted_images, scripted_session, scripted_table
from tests.support.tiny import tiny_bundle

IMAGES = scripted_images(128)
HWMON = "sys/class/hwmon/hwmon3"
SINGLE = {"name": "ina219", "power1_input": "4200000"}


def ina3221(root: Path, labels: tuple[str, ...] = ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")) -> Path:
    files = {f"{HWMON}/name": "ina3221\n"}
    for channel, label in enumerate(labels, 1):
        files |= {f"{HWMON}/in{channel}_label": f"{label}\n", f"{HWMON}/in{channel}_input": "5000\n"}
        files |= {f"{HWMON}/curr{channel}_input": f"{1000 * channel}\n"}
    return tree(root, files)


def rail_of(root: Path) -> sense.Rail:
    rail = sense.find_rail(root)
    assert isinstance(rail, sense.Rail)
    return rail


# ---- the rail


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_rail_is_the_one_that_feeds_the_board_wherever_it_stands(tmp_path: Path, place: int) -> None:
    labels = ["VDD_CPU_GPU_CV", "VDD_SOC"]
    labels.insert(place, "VDD_IN")
    rail = rail_of(ina3221(tmp_path, tuple(labels)))
    assert rail.name == "ina3221 VDD_IN"
    assert rail.power_w() == pytest.approx(5.0 * (place + 1))


def test_a_chip_that_gives_microwatts_is_read_as_such(tmp_path: Path) -> None:
    files = {"name": "ina238", "in1_label": "VIN", "in1_input": "12000", "curr1_input": "1", "power1_input": "9500000"}
    rail = rail_of(tree(tmp_path, {f"{HWMON}/{name}": text for name, text in files.items()}))
    assert rail.power_w() == pytest.approx(9.5)


def test_a_single_channel_without_a_name_is_the_board(tmp_path: Path) -> None:
    files = {
        f"{HWMON}/name": "ina219",
        f"{HWMON}/power1_input": "4200000",
        "sys/class/hwmon/hwmon0/name": "cpu_thermal",
    }
    rail = rail_of(tree(tmp_path, files))
    assert (rail.name, rail.power_w()) == ("ina219", pytest.approx(4.2))


@pytest.mark.parametrize(("label", "is_board"), [("GPU", False), ("VDD_IN", True)])
def test_the_name_of_a_chip_counts_as_that_of_its_channel(tmp_path: Path, label: str, is_board: bool) -> None:
    files = {f"{HWMON}/{name}": text for name, text in {**SINGLE, "label": label}.items()}
    assert isinstance(sense.find_rail(tree(tmp_path, files)), sense.Rail) == is_board


def test_parts_of_a_board_are_never_added_up(tmp_path: Path) -> None:
    found = sense.find_rail(ina3221(tmp_path, ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")))
    assert isinstance(found, sense.Unknown)
    assert "VDD_CPU_CV" in found.reason


def test_two_chips_without_names_are_no_rail(tmp_path: Path) -> None:
    one = {f"sys/class/hwmon/hwmon{n}/{name}": text for n in (1, 2) for name, text in SINGLE.items()}
    assert isinstance(sense.find_rail(tree(tmp_path, one)), sense.Unknown)


def test_no_sensor_is_said(tmp_path: Path) -> None:
    found = sense.find_rail(tmp_path)
    assert isinstance(found, sense.Unknown)
    assert "no power sensor" in found.reason


@pytest.mark.parametrize("text", ["", "0", "-3", "none", "1.5"])
def test_a_reading_that_cannot_be_is_unknown(tmp_path: Path, text: str) -> None:
    rail = rail_of(ina3221(tmp_path))
    (tmp_path / HWMON / "curr1_input").write_text(text)
    assert isinstance(rail.power_w(), sense.Unknown)
    (tmp_path / HWMON / "curr1_input").unlink()
    assert isinstance(rail.power_w(), sense.Unknown)


# ---- the search


def make_job(
    root: Path, budget: Budget, watts: Callable[[Gates], float], *, table_scale: float = 1.0
) -> tuple[AdaptJob, Finals]:
    """A search on the scripted model, whose board draws so many watts while a subnet runs."""
    folder = tree(root, {f"{HWMON}/name": "ina219", f"{HWMON}/power1_input": "1"}) / HWMON

    def cost_ms(gates: Gates) -> float:
        (folder / "power1_input").write_text(f"{round(watts(gates) * 1e6)}\n")
        return COST(gates)

    session = scripted_session(cost_ms)
    one = {"image": normalise(IMAGES[0], PREPROCESSING)[None]}
    finals = Finals(session, one, seed=0, rail=rail_of(root), clock_ns=session.now_ns)
    job = AdaptJob(
        finals=finals,
        evaluator=Evaluator(session, SPACE.default, IMAGES, PREPROCESSING),
        calibrate=lambda: scripted_table(table_scale),
        prior=PRIOR,
        current=SPACE.default,
        plan=AdaptPlan(budget, seconds=22.0, population=12, generations=4),
        clock_ns=session.now_ns,
    )
    return job, finals


def searched(root: Path, budget: Budget, watts: Callable[[Gates], float]) -> AdaptResult:
    job, _ = make_job(root, budget, watts)
    for _ in job.steps():
        pass
    assert job.result is not None
    return job.result


def uneven_watts(gates: Gates) -> float:
    """Subnets with fewer skipped units keep the processor busier."""
    return 5.0 + 0.4 * sum(value == 0 for value in gates.values)


@pytest.mark.parametrize("watts", [lambda gates: 5.0, uneven_watts], ids=["even", "uneven"])
@pytest.mark.parametrize("energy_mj", [20.0, 35.0, 50.0])
def test_the_chosen_subnet_keeps_the_energy_and_uses_it(
    tmp_path: Path, energy_mj: float, watts: Callable[[Gates], float]
) -> None:
    job, finals = make_job(tmp_path, Budget(energy_mj=energy_mj), watts)
    for _ in job.steps():
        pass
    assert job.result is not None
    chosen = job.result.choice.score.gates
    true_mj = watts(chosen) * COST(chosen)
    assert finals.energy_mj(chosen) == pytest.approx(true_mj, rel=0.01)
    assert 0.75 * energy_mj <= true_mj <= energy_mj
    assert f"{true_mj:.1f} mJ" in job.result.choice.reason
    full_mj = job.result.full_energy_mj
    assert full_mj is not None
    memory = Memory(scripted_table(), None, None, job.result.full_latency_ms, None, full_mj)
    limit_ms = memory.limit_ms(Budget(energy_mj=energy_mj))
    assert limit_ms is not None
    assert job.result.frontier.best(limit_ms).gates == chosen  # type: ignore[union-attr]


def test_what_drains_too_much_falls_although_it_is_fast_enough(tmp_path: Path) -> None:
    before = searched(tmp_path, Budget(energy_mj=52.0), lambda gates: 5.0)
    greedy = before.choice.score.gates
    after = searched(tmp_path, Budget(energy_mj=52.0), lambda gates: 10.0 if gates == greedy else 5.0)
    assert after.choice.score.gates != greedy
    fates = {c.score.gates: (c.fate, c.reason) for c in after.candidates}
    assert fates[greedy][0] == "over budget"
    assert "mJ > 52 mJ" in fates[greedy][1]


def test_of_two_limits_the_tighter_one_counts(tmp_path: Path) -> None:
    result = searched(tmp_path, Budget(latency_ms=5.0, energy_mj=50.0), lambda gates: 5.0)
    assert result.choice.score.latency_ms <= 5.0


def test_energy_that_no_subnet_keeps_is_an_error_that_says_what_the_thriftiest_takes(tmp_path: Path) -> None:
    job, _ = make_job(tmp_path, Budget(energy_mj=5.0), lambda gates: 5.0)
    with pytest.raises(BudgetError, match=r"thriftiest, 2-2-2-2-2, takes 12\.5 mJ \(allow at least 13\.0 mJ\)"):
        for _ in job.steps():
            pass


def test_what_keeps_the_energy_by_its_own_power_is_chosen_and_stays_in_the_loop(tmp_path: Path) -> None:
    # Fast subnets draw less than the median of those measured, by which the time limit alone would refuse them.
    result = searched(tmp_path, Budget(energy_mj=14.5), lambda gates: 4 + 0.5 * COST(gates))
    chosen = result.choice.score
    assert (4 + 0.5 * COST(chosen.gates)) * COST(chosen.gates) <= 14.5
    budget, full_ms, full_mj = Budget(energy_mj=14.5), result.full_latency_ms, result.full_energy_mj
    assert full_mj is not None
    memory = Memory(scripted_table(), chosen, result.frontier, full_ms, budget, full_mj)
    assert memory.limit_ms(budget) == max(14.5 / full_mj * full_ms, chosen.latency_ms)
    assert result.frontier.best(memory.limit_ms(budget) or 0.0).gates == chosen.gates  # type: ignore[union-attr]
    other = Budget(energy_mj=10.0)
    assert memory.limit_ms(other) == pytest.approx(10.0 / full_mj * full_ms)


def test_energy_is_power_times_the_median_and_what_the_sensor_says_first_is_left_out(tmp_path: Path) -> None:
    folder = tree(tmp_path, {f"{HWMON}/name": "ina219", f"{HWMON}/power1_input": "1"}) / HWMON
    began_ms, runs = [0.0], [0]

    def cost_ms(gates: Gates) -> float:
        runs[0] += 1
        settled = session.now_ns() / 1e6 - began_ms[0] > 45  # the runs of which the first readings are
        (folder / "power1_input").write_text("5000000" if settled else "50000000")
        return 50.0 if runs[0] % 12 == 0 else 10.0  # a tail that the median does not see

    session = scripted_session(cost_ms)
    one = {"image": normalise(IMAGES[0], PREPROCESSING)[None]}
    finals = Finals(session, one, seed=0, rail=rail_of(tmp_path), clock_ns=session.now_ns)
    power_w = finals._power_w

    def begun(*arguments: Any) -> float:
        began_ms[0] = session.now_ns() / 1e6
        return power_w(*arguments)

    finals._power_w = begun  # type: ignore[method-assign]
    for _ in finals.steps([SPACE.default], 36, 0.1):
        pass
    assert finals.energy_mj(SPACE.default) == pytest.approx(50.0)


def test_a_rail_that_falls_silent_ends_the_search_with_a_reason(tmp_path: Path) -> None:
    job, _ = make_job(tmp_path, Budget(energy_mj=30.0), lambda gates: 0.0)
    with pytest.raises(ResourceError, match="gives no power"):
        for _ in job.steps():
            pass


def test_without_a_limit_on_energy_no_rail_is_read(tmp_path: Path) -> None:
    session = scripted_session()
    finals = Finals(session, {"image": normalise(IMAGES[0], PREPROCESSING)[None]}, seed=0, clock_ns=session.now_ns)
    for _ in finals.steps([SPACE.default], 12, 0.1):
        pass
    assert finals.energy_mj(SPACE.default) is None
    assert finals.full_energy_mj(12.0) is None


# ---- the model


def test_a_machine_without_a_rail_says_so_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sense, "find_rail", lambda: sense.Unknown("no power sensor in /sys/class/hwmon"))
    frames = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    tiny_bundle(tmp_path / "tiny.nnf")
    with EdgeModel.load(tmp_path / "tiny.nnf", state_dir=tmp_path / "state", threads=1) as model:
        before, budget = model.gates, model.budget
        with pytest.raises(UsageError, match="no power sensor"):
            model.adapt(frames, budget=Budget(energy_mj=30.0), wait=True)
        assert (model.gates, model.budget) == (before, budget)


def test_no_rail_is_said_when_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sense, "find_rail", lambda: sense.Unknown("no power sensor in /sys/class/hwmon"))
    tiny_bundle(tmp_path / "tiny.nnf")
    with pytest.raises(UsageError, match="no power sensor"):
        EdgeModel.load(tmp_path / "tiny.nnf", state_dir=tmp_path / "state", budget=Budget(energy_mj=30.0))


def test_a_model_adapts_to_an_energy_and_keeps_what_it_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "board", {f"{HWMON}/name": "ina219", f"{HWMON}/power1_input": "5000000"})
    rail = rail_of(root)
    monkeypatch.setattr(sense, "find_rail", lambda: rail)
    tiny_bundle(tmp_path / "tiny.nnf")
    frames = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    plenty = Budget(energy_mj=1e6)
    with EdgeModel.load(tmp_path / "tiny.nnf", state_dir=tmp_path / "state", threads=1) as model:
        status = model.adapt(frames, budget=plenty, wait=True)
        assert "mJ" in status.reason
        assert status.limit_ms is not None
        assert model.adapt().limit_ms == status.limit_ms
        model.adapt(frames, budget=Budget(latency_ms=1000.0), wait=True)  # a search that reads no rail
    with EdgeModel.load(tmp_path / "tiny.nnf", state_dir=tmp_path / "state", threads=1, budget=plenty) as model:
        limit_ms = model.adapt().limit_ms
        assert limit_ms == pytest.approx(status.limit_ms, rel=1e-6)
        model.adapt(budget=Budget(energy_mj=1e-3))  # less than anything takes: as fast as can be
        assert model.frontier is not None
        assert model.gates == model.frontier.fastest.gates
        assert model.budget.limits_time


def test_energies_are_remembered(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path)
    memory = Memory(scripted_table(), None, None, 12.0, Budget(energy_mj=30.0), 60.0)
    memory.save(state, "adapt.json")
    assert Memory.read(state, "adapt.json", SPACE) == memory
    assert memory.limit_ms(Budget(energy_mj=30.0)) == 6.0
    assert memory.limit_ms(Budget(memory_mib=30.0)) is None
    body = state.read_json("adapt.json")
    del body["full_energy_mj"]  # as an older version wrote it
    state.write_json("adapt.json", body)
    older = Memory.read(state, "adapt.json", SPACE)
    assert older is not None
    assert older.limit_ms(Budget(energy_mj=30.0)) is None
