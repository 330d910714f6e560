"""What the elastify bench says of arms that are scored, and of networks that onnxruntime quantises."""

import io
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "bench"))

import elastify_tested
from elastify_arms import Arm
from elastify_data import load_images
from elastify_oracle import GRAPH
from elastify_points import keep, kept_points, kept_right, point_within, shared_points, shared_right
from elastify_quantised import WHOLE, quantised_folder, quantised_graph, score_quantised
from elastify_report import report
from torch import nn

from builder.distill.losses import normalised_error
from builder.errors import BuildError
from builder.export import static_model
from builder.recipes.common import spread
from builder.runlog import RunLog
from edge_runtime.backends import open_static
from tests.builder.nets import BottleneckNet, images, made
from tests.builder.tiny_images import write_images

pytestmark = pytest.mark.builder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data"))


def test_the_report_pairs_arms_by_image(tmp_path):
    arms = (Arm("ours", 0), Arm("ours", 1), Arm("adaptivenet", 0), Arm("adaptivenet", 1), Arm("naive", 0))
    rights = {"ours": 0.8, "adaptivenet": 0.75}
    (tmp_path / "oracle.json").write_text("{}")
    for arm in arms[:4]:
        folder = tmp_path / arm.folder
        folder.mkdir()
        (folder / "arm.json").write_text(json.dumps({"arm": arm.name}))
        right = np.arange(100) < 100 * rights[arm.name] - 2 * arm.seed
        keep(folder, 0.6, {"reachable": True, "accuracy": float(right.mean())}, right.astype(float))
    keep(tmp_path / "ours-seed0", 0.4, {"reachable": False, "reason": "too slow"}, None)
    found = report(tmp_path, arms, (0.8, 0.6, 0.4), (np.arange(100) < 85).astype(float))
    pair = found["ours_minus"]["adaptivenet"]["0.60"]
    assert pair["points"] == pytest.approx(5.0)
    assert pair["low"] < 5.0 < pair["high"]
    assert found["ours_minus"]["oracle"]["0.60"]["points"] == pytest.approx(-6.0)
    assert set(found["ours_minus"]["adaptivenet"]) == {"0.60"}
    assert found["ours_minus_adaptivenet_up_to_70"]["budgets"] == 1
    met = met_of(found)
    assert met["over AdaptiveNet, mean of the budgets up to 70 %, points"] is None  # 40 % is missing
    assert met["under the oracle at 60 %, points"] is False
    assert met["under the oracle at 80 %, points"] is None
    assert set(found["arms"]) == {arm.folder for arm in arms[:4]}
    of_one = report(tmp_path, arms, (0.6,), (np.arange(100) < 85).astype(float))
    assert met_of(of_one)["over AdaptiveNet, mean of the budgets up to 70 %, points"] is True
    assert met_of(of_one)["over AdaptiveNet where it is least, points"] is True


def met_of(found):
    return {bar["bar"]: bar["met"] for bar in found["bars"]}


def test_the_report_sets_one_seed_beside_the_same_seed(tmp_path):
    (tmp_path / "oracle.json").write_text("{}")
    arms = (Arm("ours", 0), Arm("ours", 1), Arm("naive", 1))
    for arm, right in zip(arms, (90, 80, 70), strict=True):
        (tmp_path / arm.folder).mkdir()
        (tmp_path / arm.folder / "arm.json").write_text(json.dumps({"arm": arm.name}))
        keep(tmp_path / arm.folder, 0.6, {"reachable": True}, (np.arange(100) < right).astype(float))
    assert report(tmp_path, arms, (0.6,), np.ones(100))["ours_minus"]["naive"]["0.60"]["points"] == pytest.approx(10.0)


def test_no_bar_about_networks_of_their_own_is_met_before_all_are_there(tmp_path):
    (tmp_path / "oracle.json").write_text("{}")
    arms = (Arm("ours", 0), *(Arm(f"purpose-{percent}", 0) for percent in (80, 60, 40)))
    for count in (2, 3, 4):
        for arm in arms[:count]:
            (tmp_path / arm.folder).mkdir(exist_ok=True)
            (tmp_path / arm.folder / "arm.json").write_text(json.dumps({"arm": arm.name}))
            at = arm.fraction or 0.6
            keep(tmp_path / arm.folder, at, {"reachable": True, "ratio": at}, (np.arange(100) < 70).astype(float))
        for arm in arms[1:count]:
            keep(tmp_path / "ours-seed0", arm.fraction, {"reachable": True}, (np.arange(100) < 80).astype(float))
        met = met_of(report(tmp_path, arms[:count], (0.6,), np.ones(100)))
        assert met["under a network of its own where it is most, points"] is (True if count == 4 else None)


def test_the_report_sets_ours_beside_what_the_runtime_itself_quantises(tmp_path):
    (tmp_path / "oracle.json").write_text("{}")
    arms = (Arm("ours", 0), Arm("ours", 1), Arm("purpose-40", 0))
    for arm in arms:
        (tmp_path / arm.folder).mkdir()
        (tmp_path / arm.folder / "arm.json").write_text(json.dumps({"arm": arm.name}))
    for arm in arms[:2]:
        for fraction, ratio, right in ((0.6, 0.58, 90), (0.5, 0.49 + 0.01 * arm.seed, 80)):
            point = {"fraction": fraction, "ratio": ratio, "estimate": right, "accuracy": right}
            keep(tmp_path / arm.folder, fraction, point, (np.arange(100) < right - 2 * arm.seed).astype(float))
    keep(tmp_path / "purpose-40-seed0", 0.4, {"fraction": 0.4, "ratio": 0.39}, np.zeros(100))
    for folder, ratio in ((tmp_path, 0.55), (tmp_path / "purpose-40-seed0", 0.25)):
        quantised_folder(folder).mkdir()
        point = {"reachable": True, "ratio": ratio, "accuracy": 0.78}  # as `network_point` makes it
        keep(quantised_folder(folder), WHOLE, point, (np.arange(100) < 78).astype(float))
    found = report(tmp_path, arms, (0.6, 0.5), np.ones(100))["ours_minus"]["quantised"]
    assert found["oracle"]["points"] == pytest.approx(1.0)  # what is at 0.58 is too slow for it
    assert found["oracle"]["ours_ratios"] == [0.49, 0.5]
    assert found["purpose-40-seed0"] == {"ratio": 0.25, "accuracy": 0.78}  # ours has nothing as quick


def test_of_further_shares_too_the_best_within_any_latency_is_found(tmp_path):
    for fraction, ratio, estimate in ((0.6, 0.58, 0.7), (0.5, 0.49, 0.5), (0.45, 0.44, 0.6)):
        point = {"fraction": fraction, "ratio": ratio, "estimate": estimate, "further": fraction == 0.45}
        keep(tmp_path, fraction, point, np.array([1.0]))
    keep(tmp_path, 0.3, {"fraction": 0.3, "reachable": False}, None)
    assert [point_within(tmp_path, most)["fraction"] for most in (0.7, 0.5)] == [0.6, 0.45]
    assert point_within(tmp_path, 0.4) is None


@pytest.mark.parametrize("method", ["MinMax", "Percentile"])
def test_the_runtime_quantises_what_it_computes_nearly_alike(method):
    net, x = made(BottleneckNet), images(16, seed=3)
    coded = quantised_graph(static_model(net, x[:2]), [batch.numpy() for batch in x.split(4)], method)
    with torch.no_grad():
        wanted = net(x)
    session = open_static(coded)
    found = torch.from_numpy(next(iter(session.run({session.inputs[0].name: x.numpy()}).values())))
    assert not torch.equal(found, wanted)
    assert normalised_error(found, wanted) < 0.05
    operators = {node.op_type for node in onnx.ModelProto.FromString(coded).graph.node}
    assert "QLinearConv" in operators
    assert not operators & {"Conv", "BatchNormalization", "Clip", "Relu"}


def test_a_network_is_quantised_timed_and_tested_once(data, tmp_path, monkeypatch):
    monkeypatch.setattr(elastify_tested, "alone", lambda what: nullcontext())
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    splits, log = load_images(data, seed=0), RunLog(stream=io.StringIO())
    graph = static_model(net.eval(), spread(splits.train, 2))
    (tmp_path / GRAPH).write_bytes(graph)
    for _ in range(2):
        score_quantised(tmp_path, graph, splits, tmp_path, 3, log)
        graph = b""  # not read again
    (point,) = kept_points(quantised_folder(tmp_path)).values()
    assert point["ratio"] > 0
    assert point["accuracy"] == kept_right(quantised_folder(tmp_path), 1.0).mean()
    assert set(point["search_accuracy"]) == {f"{m}-{b}" for m in ("MinMax", "Percentile", "Entropy") for b in (7, 8)}


def test_a_network_that_cannot_be_quantised_is_an_error():
    with pytest.raises(BuildError, match="cannot quantise"):
        quantised_graph(static_model(nn.Flatten(), torch.zeros(1, 3, 4, 4)), [])


def test_a_share_that_was_given_another_subnet_still_serves_smaller_ones_with_its_own(tmp_path):
    for fraction, ratio, accuracy, right in ((0.9, 0.55, 0.6, 0.0), (0.8, 0.78, 0.7, 1.0), (0.6, 0.58, 0.5, 0.5)):
        keep(tmp_path, fraction, {"fraction": fraction, "ratio": ratio, "estimate": accuracy}, np.array([right]))
    points = shared_points(tmp_path)
    assert [points[f"{f:.4f}"]["ratio"] for f in (0.9, 0.8, 0.6)] == [0.78, 0.78, 0.55]
    assert [shared_right(tmp_path, f).tolist() for f in (0.9, 0.8, 0.6)] == [[1.0], [1.0], [0.0]]


def test_a_share_gets_the_best_subnet_within_it_whichever_search_found_it(tmp_path):
    rows = {0.9: (0.85, 0.70, 1), 0.6: (0.58, 0.50, 0), 0.5: (0.49, 0.55, 1), 0.4: (0.39, 0.52, 0)}
    for fraction, (ratio, estimate, right) in rows.items():
        point = {"fraction": fraction, "ratio": ratio, "estimate": estimate}
        keep(tmp_path, fraction, point, np.array([float(right)]))
    for fraction in (0.3, 0.45):
        keep(tmp_path, fraction, {"fraction": fraction, "reachable": False}, None)
    points = shared_points(tmp_path)
    assert [points[f"{f:.4f}"].get("found_at", f) for f in (0.9, 0.6, 0.5, 0.45, 0.4)] == [0.9, 0.5, 0.5, 0.4, 0.4]
    assert points["0.6000"]["ratio"] == 0.49
    assert points["0.6000"]["fraction"] == 0.6
    assert shared_right(tmp_path, 0.6).tolist() == [1.0]
    assert points["0.3000"] == {"fraction": 0.3, "reachable": False}
    assert kept_points(tmp_path)["0.6000"]["ratio"] == 0.58  # what its own search found stays


def test_what_is_found_where_others_are_not_searched_serves_no_common_share(tmp_path):
    for fraction, ratio, estimate, further in (
        (0.6, 0.58, 0.5, False),
        (0.5, 0.49, 0.4, False),
        (0.55, 0.54, 0.7, True),
    ):
        point = {"fraction": fraction, "ratio": ratio, "estimate": estimate, "further": further}
        keep(tmp_path, fraction, point, np.array([estimate]))
    points = shared_points(tmp_path)
    assert [points[f"{f:.4f}"]["ratio"] for f in (0.6, 0.55, 0.5)] == [0.58, 0.54, 0.49]
    keep(tmp_path, 0.5, {"fraction": 0.5, "ratio": 0.49, "estimate": 0.8, "further": False}, np.array([0.8]))
    assert shared_points(tmp_path)["0.5500"]["found_at"] == 0.5
