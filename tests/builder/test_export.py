import platform

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from builder.distill import measure_prior
from builder.elastify import elastify
from builder.errors import BuildError
from builder.export import BundleInfo, check_parity, pack, static_graph, static_model
from edge_runtime.backends import SessionOptions, open_session, open_static
from edge_runtime.backends.onnx.layout import convolution_layouts
from edge_runtime.bundle import Bundle, Preprocessing, Provenance
from tests.builder.nets import Basic, BasicNet, BottleneckNet, DenseHeadNet, WideHeadNet, images, made

pytestmark = pytest.mark.builder

INFO = BundleInfo(
    "test",
    Preprocessing(32, 32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    ("a", "b", "c", "d", "e"),
    Provenance("test net", "random", "test", 0, {}, "pytest", "2026-01-01T00:00:00Z"),
    {},
)


@pytest.fixture(
    scope="module", params=[BottleneckNet, BasicNet, WideHeadNet, DenseHeadNet], ids=lambda kind: kind.__name__
)
def exported(request, tmp_path_factory):
    oracle = made(request.param)
    supernet = elastify(oracle, images(32))
    path = tmp_path_factory.mktemp("bundle") / "net.nnf"
    return oracle, supernet, pack(supernet, measure_prior(supernet, images(16, seed=2)), INFO, path)


def test_default_gates_equal_the_oracle_and_every_alternative_equals_torch(exported):
    oracle, supernet, bundle = exported
    report = check_parity(supernet, oracle, bundle, images(256, seed=3))
    assert report.oracle_error <= 1e-4
    assert report.alternative_error <= 1e-3
    assert report.images == 256
    assert report.vectors >= sum(group.size - 1 for group in supernet.space.groups)


def test_random_vectors_equal_torch(exported):
    _, supernet, bundle = exported
    session, x = open_session(bundle), images(4, seed=4)
    rng = np.random.default_rng(0)
    for _ in range(30):
        gates = supernet.space.gates([int(rng.integers(group.size)) for group in supernet.space.groups])
        with torch.no_grad():
            wanted = supernet(x, gates).numpy()
        np.testing.assert_allclose(session.run({"image": x.numpy()}, gates)["logits"], wanted, atol=1e-4)


def test_parity_check_fails_when_a_weight_is_wrong(exported, tmp_path):
    oracle, supernet, bundle = exported
    weights = np.frombuffer(bundle.weights, np.float32) * 1.01
    damaged = Bundle(bundle.manifest, bundle.digest, bundle.model_bytes, weights.tobytes(), bundle.source)
    with pytest.raises(BuildError, match="differs from torch"):
        check_parity(supernet, oracle, damaged, images(8))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the NCHWc layout exists on x86 only")
def test_every_eligible_convolution_is_in_nchwc(exported, tmp_path):
    _, supernet, bundle = exported
    report = convolution_layouts(bundle.model_bytes, bundle.weights, SessionOptions(), tmp_path)
    convolutions = sum(
        isinstance(module, nn.Conv2d) for part in (supernet.fixed, supernet.bodies) for module in part.modules()
    )
    assert report.plain == ()
    assert len(report.blocked) == convolutions


def test_static_export_of_the_oracle_and_of_a_subnet(exported):
    oracle, supernet, _ = exported
    x = images(4, seed=5)
    gates = supernet.space.default.replace(0, 1)
    with torch.no_grad():
        pairs = [(static_model(oracle, x), oracle(x)), (static_graph(supernet, gates), supernet(x, gates))]
    for model_bytes, wanted in pairs:
        found = open_static(model_bytes).run({"image": x.numpy()})["logits"]
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


def test_same_supernet_gives_the_same_bytes(exported, tmp_path):
    _, supernet, bundle = exported
    again = pack(supernet, bundle.manifest.prior, INFO, tmp_path / "again.nnf")
    assert again.digest == bundle.digest


class TwoEnds(nn.Module):
    """Takes an image and a depth map, gives logits and the features that they were made of."""

    def __init__(self):
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(1, 32, 3, 2, 1)
        self.blocks, self.head = nn.ModuleList(Basic(32, 32, 1) for _ in range(3)), nn.Linear(32, 5)

    def forward(self, image, depth):
        x = torch.relu(self.stem(image) + self.side(depth))
        for block in self.blocks:
            taken, x = x, block(x)
        return {"scores": self.head(x.mean((2, 3))), "taps": (taken, [x])}


def test_several_inputs_and_outputs_keep_their_names_and_values(tmp_path):
    torch.manual_seed(0)
    oracle, inputs = TwoEnds().eval(), (images(32), images(32, seed=2)[:, :1])
    supernet = elastify(oracle, inputs)
    bundle = pack(supernet, [[0.0] * group.size for group in supernet.space.groups], INFO, tmp_path / "net.nnf")
    manifest = bundle.manifest
    assert [(spec.name, spec.shape) for spec in manifest.inputs] == [
        ("image", (None, 3, 32, 32)),
        ("depth", (None, 1, 32, 32)),
    ]
    assert [spec.name for spec in manifest.outputs] == ["scores", "taps_0", "taps_1_0"]
    report = check_parity(supernet, oracle, bundle, (images(40, seed=3), images(40, seed=4)[:, :1]))
    assert report.images == 40
    gates = supernet.space.default.replace(0, 1)
    static = open_static(static_graph(supernet, gates))
    found = static.run({"image": inputs[0].numpy(), "depth": inputs[1].numpy()})
    with torch.no_grad():
        for value, wanted in zip(found.values(), supernet.features(inputs, gates).outputs, strict=True):
            np.testing.assert_allclose(value, wanted.numpy(), atol=1e-4)


def test_an_operation_without_translation_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            return torch.cumsum(self.conv(x), 1).mean((2, 3))

    with pytest.raises(BuildError, match="cumsum"):
        static_model(Odd().eval(), images(1))


def test_parity_check_fails_on_alternatives_that_are_not_finite(exported, tmp_path):
    oracle, _, _ = exported
    supernet = elastify(oracle, images(32))
    with torch.no_grad():
        for parameter in supernet.bodies.parameters():
            parameter.fill_(float("nan"))
    prior = tuple(tuple(0.0 for _ in group.labels) for group in supernet.space.groups)
    bundle = pack(supernet, prior, INFO, tmp_path / "nan.nnf")
    with pytest.raises(BuildError, match="differs from torch"):
        check_parity(supernet, oracle, bundle, images(8))


def test_parity_is_relative_to_the_size_of_the_outputs(tmp_path):
    oracle = made(BasicNet)
    with torch.no_grad():
        for layer in oracle.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(1e5)
    supernet = elastify(oracle, images(32))
    prior = measure_prior(supernet, images(8))
    report = check_parity(supernet, oracle, pack(supernet, prior, INFO, tmp_path / "large.nnf"), images(32))
    with torch.no_grad():
        assert oracle(images(32)).abs().max() > 1e3, "an absolute difference would be above the tolerance"
    assert report.oracle_error <= 1e-4
