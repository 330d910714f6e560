"""What is lowered as a whole: several inputs and outputs, narrowed copies, decisions and prepared forms, refusals."""

import copy

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from torch import fx, nn
from torch.nn import functional as F  # noqa: N812

from builder.errors import BuildError
from builder.export.lower import lower, lower_many
from builder.onnx_writer import GraphWriter
from edge_runtime.backends import SessionOptions, compile_bundle, open_compiled, open_session
from edge_runtime.bundle import TensorSpec
from edge_runtime.gates import GateGroup, GateSpace
from tests.builder.lowered import Net, bundle_of, exported, relative_error, specs, traced_by_fx

pytestmark = pytest.mark.builder


def image(batch=2, side=16, seed=0):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))


def shuffled(x, groups):
    batch, channels, height, width = x.shape
    x = x.reshape(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(batch, channels, height, width)


# ---- several inputs and outputs


class Detector(nn.Module):
    """An image and a mask of its size to class logits, boxes, and what the mask leaves of the image."""

    def __init__(self):
        super().__init__()
        self.stem, self.boxes, self.head = nn.Conv2d(4, 16, 3, 2, 1), nn.Conv2d(16, 4, 1), nn.Linear(16, 5)

    def forward(self, image, mask):
        x = F.relu(self.stem(torch.cat([image, mask], 1)))
        return self.head(x.mean((2, 3))), {"boxes": [self.boxes(x)], "seen": image * mask}


def detector(path):
    torch.manual_seed(0)
    net, given = Detector().eval(), (image(), torch.rand(2, 1, 16, 16))
    logits, more = net(*given)
    outputs = specs(["logits", "boxes", "seen"], [logits, more["boxes"][0], more["seen"]])
    traced = traced_by_fx(net, *given)
    body = lambda writer: lower_many(writer, traced, "net", ["image", "mask"])  # noqa: E731
    return net, bundle_of(path, body, specs(["image", "mask"], given), outputs)


@pytest.mark.parametrize("batch", [1, 3])
def test_several_inputs_and_outputs_equal_torch(batch, tmp_path):
    net, bundle = detector(tmp_path / "b.nnf")
    given = (image(batch, seed=1), torch.rand(batch, 1, 16, 16))
    folder = tmp_path / "prepared"
    folder.mkdir()
    compile_bundle(bundle, SessionOptions(), folder, key="k")
    sessions = [open_session(bundle), open_compiled(bundle, SessionOptions(), folder, key="k")]
    with torch.no_grad():
        logits, more = net(*given)
    wanted = {"logits": logits, "boxes": more["boxes"][0], "seen": more["seen"]}
    for session in sessions:
        found = session.run({"image": given[0].numpy(), "mask": given[1].numpy()}, bundle.manifest.space.default)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value.numpy(), atol=1e-5)
        session.close()


def test_values_that_are_passed_on_get_nodes_of_their_own():
    class Passing(nn.Module):
        def forward(self, x):
            return x, x, F.relu(x), F.pad(x, (1, 1))

    writer = GraphWriter()
    names = lower_many(writer, traced_by_fx(Passing(), image()), "net", ["image"])
    assert len({"image", *names}) == 5
    nodes = writer.model([], [], "g").graph.node
    assert [node.op_type for node in nodes] == ["Relu", "Identity", "Identity", "Pad"]


def test_one_value_is_not_taken_from_several():
    traced = traced_by_fx(nn.Identity(), image())
    with pytest.raises(BuildError, match="takes 1 inputs, not 2"):
        lower_many(GraphWriter(), traced, "net", ["a", "b"])

    class Two(nn.Module):
        def forward(self, x):
            return F.relu(x), x.tanh()

    with pytest.raises(BuildError, match="gives 2 values"):
        lower(GraphWriter(), traced_by_fx(Two(), image()), "net", "image")


def test_weights_of_one_name_and_other_values_are_kept_apart():
    writer = GraphWriter()
    first = writer.initializer("w", np.zeros(3, np.float32))
    assert writer.initializer("w", np.zeros(3, np.float32)) == first
    assert writer.initializer("w", np.ones(3, np.float32)) != first


# ---- copies that were made narrower after they were traced


class Shuffling(nn.Module):
    """Expand, shuffle, split, gate one half by the other, join, project."""

    def __init__(self, width=12):
        super().__init__()
        self.expand, self.norm = nn.Conv2d(3, width, 1, bias=False), nn.BatchNorm2d(width)
        self.project = nn.Conv2d(width, 4, 3, 2, 1)

    def forward(self, x):
        one, other = shuffled(self.norm(self.expand(x)), 2).chunk(2, 1)
        x = torch.cat([one * other.mean((2, 3), keepdim=True), other], dim=1)
        return self.project(x).flatten(1)


def test_recorded_shapes_of_a_wider_original_do_not_count(tmp_path):
    torch.manual_seed(0)
    net = Shuffling().eval()
    narrower = copy.deepcopy(traced_by_fx(net, image()))
    for name, module in Shuffling(8).eval().named_children():
        setattr(narrower, name, module)
    x = image()
    assert relative_error(exported(tmp_path / "b", narrower, x, narrower(x)), narrower, x) <= 1e-5


def test_a_module_that_does_not_fit_its_shapes_is_refused():
    traced = traced_by_fx(Shuffling(), image())
    traced.project = nn.Conv2d(7, 4, 1)
    with pytest.raises(BuildError, match="does not run"):
        lower(GraphWriter(), traced, "net", "image")


# ---- decisions, and the forms that are prepared of them


SPACE = GateSpace(
    (
        GateGroup("unit0", "choice", ("original", "narrow", "skip")),
        GateGroup("unit1", "choice", ("original", "other")),
    )
)


class Dense(nn.Module):
    """Two convolutions whose results are joined, as in DenseNet, and shuffled: 32 channels to 32."""

    def __init__(self, width):
        super().__init__()
        self.a, self.norm = nn.Conv2d(32, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.b, self.project = nn.Conv2d(32 + width, 16, 1), nn.Conv2d(48 + width, 32, 1)

    def forward(self, x):
        x = torch.cat([x, F.relu(self.norm(self.a(x)))], 1)
        return self.project(shuffled(torch.cat([x, F.relu(self.b(x))], 1), 4))


class Halves(nn.Module):
    """One half passes, the other is convolved; joined and shuffled, as in ShuffleNetV2."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16))

    def forward(self, x):
        left, right = x.chunk(2, dim=1)
        return shuffled(torch.cat((left, self.branch(right)), dim=1), 2)


class Gated(nn.Module):
    """Squeeze and excite, an activation that is no Relu, a residual sum, and a resize there and back."""

    def __init__(self):
        super().__init__()
        self.a, self.gate, self.act = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 1), nn.LeakyReLU(0.2)

    def forward(self, x):
        y = self.act(self.a(x))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        return F.max_pool2d(F.interpolate(x + y, scale_factor=2), 2)


PARTS = {
    "stem": lambda: nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
    "unit0.original": lambda: Dense(32),
    "unit0.narrow": lambda: Dense(16),
    "unit0.skip": nn.Identity,
    "unit1.original": Halves,
    "unit1.other": Gated,
    "head": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 7)),
}


def made_parts():
    torch.manual_seed(0)
    parts = {name: make().eval() for name, make in PARTS.items()}
    x, traced = image(), {}
    for name in ("stem", "unit0.original", "unit0.narrow", "unit1.original", "unit1.other", "head"):
        given = x if name == "stem" else torch.randn(2, 32, 8, 8)
        traced[name] = traced_by_fx(parts[name], given)
    return parts, traced


def write_gated(writer, traced):
    for index in range(2):
        writer.node("Gather", ["gates", writer.scalar(index)], f"gather_{index}", {"axis": 0}, output=f"gate_{index}")

    def alternative(name, x):
        return lower(writer, traced.get(name, nn.Identity()), name, x)

    def decide(unit, values, x, name):
        if len(values) == 1:
            return alternative(f"unit{unit}.{SPACE.groups[unit].labels[values[0]]}", x)
        test = writer.node("Less", [f"gate_{unit}", writer.scalar(values[1])], f"{name}_test")
        branches = {}
        for branch, chosen in (("then_branch", values[:1]), ("else_branch", values[1:])):
            writer.open_branch()
            output = decide(unit, chosen, x, f"group_{unit}_tree_{values[1]}")
            branches[branch] = writer.close_branch(writer.unique(f"{name}_{branch}"), output, (32, 8, 8))
        return writer.node("If", [test], name, branches)

    x = decide(0, (0, 1, 2), alternative("stem", "image"), "group_0")
    return [alternative("head", decide(1, (0, 1), x, "group_1"))]


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gated")
    parts, traced = made_parts()
    outputs = (TensorSpec("logits", "float32", (None, 7)),)
    body = lambda writer: write_gated(writer, traced)  # noqa: E731
    bundle = bundle_of(folder / "b.nnf", body, specs(["image"], [image()]), outputs, SPACE)
    (folder / "prepared").mkdir()
    compile_bundle(bundle, SessionOptions(), folder / "prepared", key="k")
    return parts, bundle, folder / "prepared"


def run_torch(parts, gates, x):
    x = parts["stem"](x)
    for group, value in zip(SPACE.groups, gates.values, strict=True):
        x = parts[f"{group.name}.{group.labels[value]}"](x)
    return parts["head"](x).detach().numpy()


@pytest.mark.parametrize("batch", [1, 3])
def test_the_portable_and_the_prepared_form_equal_torch(gated, batch):
    parts, bundle, folder = gated
    x = image(batch, seed=batch)
    for session in (open_session(bundle), open_compiled(bundle, SessionOptions(), folder, key="k")):
        for gates in SPACE.enumerate():
            found = session.run({"image": x.numpy()}, gates)["logits"]
            np.testing.assert_allclose(found, run_torch(parts, gates, x), rtol=1e-4, atol=1e-5, err_msg=str(gates))
        session.close()


def test_the_quickest_form_was_made(gated):
    assert '"form": "crossing"' in (gated[2] / "record.json").read_text()


def test_every_convolution_is_followed_by_a_norm(gated):
    def graphs(graph):
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    yield from graphs(attribute.g)

    count = 0
    for graph in graphs(onnx.load_from_string(gated[1].model_bytes).graph):
        normed = {node.input[0] for node in graph.node if node.op_type == "BatchNormalization"}
        made = [node.output[0] for node in graph.node if node.op_type == "Conv"]
        assert set(made) <= normed
        count += len(made)
    assert count == 11


# ---- what cannot be exported


REFUSED = {
    "unknown function": (lambda m, x: torch.cumsum(x, 1), "cumsum at 'cumsum' cannot be exported yet"),
    "unknown module": (lambda m, x: m.part(x), "LPPool2d at 'part' cannot be exported yet", nn.LPPool2d(2, 2)),
    "transposed": (lambda m, x: m.part(x), "ConvTranspose2d", nn.ConvTranspose2d(3, 3, 2)),
    "padding mode": (lambda m, x: m.part(x), "pads by 'reflect'", nn.Conv2d(3, 3, 3, 1, 1, padding_mode="reflect")),
    "reflection": (lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "pads by 'reflect'"),
    "cropping": (lambda m, x: F.pad(x, (-1, 0)), "pads by 'constant'"),
    "indices": (lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0], "with_indices at"),
    "mixed padding": (lambda m, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)[:, :, :8], "padding that counts"),
    "uneven pooling": (lambda m, x: F.adaptive_avg_pool2d(x, 5), "does not divide"),
    "mean of the batch": (lambda m, x: x - x.mean(0, keepdim=True), "reduces the batch"),
    "mean of all": (lambda m, x: x - x.mean(), "reduces the batch"),
    "softmax of the batch": (lambda m, x: x.softmax(0), "along the dimension 0"),
    "batch moved": (lambda m, x: x.transpose(0, 1).reshape(2, -1), "moves the batch"),
    "batch merged": (lambda m, x: x.reshape(6, 16, 16).relu().reshape(2, -1), "keep the batch in front"),
    "batch joined": (lambda m, x: torch.cat([x, x]).chunk(2)[0], "joins along the batch"),
    "batch cut": (lambda m, x: x[:1].expand(2, 3, 16, 16), "a part of the batch"),
    "backwards": (lambda m, x: x.flip(2), "flip at 'flip'"),
    "indexed": (lambda m, x: x[:, torch.tensor([2, 0])], "tensor"),
    "computed weight": (lambda m, x: F.conv2d(x, x[:1, :, :3, :3]), "a part of the batch"),
    "computed matrix": (lambda m, x: F.linear(x, x[0, 0]), "batch"),
    "dynamic product": (lambda m, x: x @ x.transpose(2, 3), "weight that is computed from the input"),
    "scaled oddly": (lambda m, x: F.interpolate(x, scale_factor=1.3, mode="bilinear"), "scales 16 pixels by 1.3"),
    "other pixels": (lambda m, x: F.interpolate(x[:, :, :9, :9], size=(15, 15)), "takes other pixels"),
    "bicubic": (lambda m, x: F.interpolate(x, scale_factor=2, mode="bicubic"), "interpolates by 'bicubic'"),
    "power": (lambda m, x: x**3, "exponent"),
    "rounded": (lambda m, x: torch.div(x, 2, rounding_mode="floor"), "rounds by 'floor'"),
    "infinite": (lambda m, x: x * float("inf"), "uses the number inf"),
    "comparison": (lambda m, x: (x > 0) * x, "gt"),
    "batch statistics": (lambda m, x: F.batch_norm(x, None, None, training=True), "statistics of the batch"),
    "even response": (lambda m, x: F.local_response_norm(x, 2), "even size"),
    "written in place": (lambda m, x: x.exp_() + x, "writes into a value that others read"),
    "one dimension": (lambda m, x: x * x.mean((1, 2, 3)).view(-1, 1, 1, 1), "gives a tensor of the shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_named_with_a_hint(case):
    function, message, *part = REFUSED[case]
    net = Net(function, **({"part": part[0]} if part else {})).eval()
    with pytest.raises(BuildError, match=message) as caught:
        lower(GraphWriter(), traced_by_fx(net, image()), "net", "image")
    assert caught.value.hint
    assert str(caught.value).isprintable()


def test_a_constant_is_no_output():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.ones(2, 2))

        def forward(self, x):
            return self.value * 2

    with pytest.raises(BuildError, match="does not depend on the input"):
        lower(GraphWriter(), traced_by_fx(Constant(), image()), "net", "image")


def test_a_module_without_shapes_is_refused():
    with pytest.raises(BuildError, match="has no shape"):
        lower(GraphWriter(), fx.symbolic_trace(nn.ReLU()), "net", "image")
