"""What a GPU does as the CPU does; skipped where there is none."""

import io

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from builder.data import Augmentation, ImageSet, source_of
from builder.distill import LocalConfig, LoopConfig, PathConfig, train_local, train_paths
from builder.elastify import elastify
from builder.runlog import RunLog
from builder.training import Compute
from tests.builder.nets import BottleneckNet, images, made

pytestmark = [
    pytest.mark.builder,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LOCAL = LocalConfig(LoopConfig(3, 8, learning_rate=2e-3))
PATHS = PathConfig(LoopConfig(3, 8, learning_rate=1e-3))


def batches(device="cpu"):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 32, 32, 3)).astype(np.uint8)
    labelled = ImageSet(pixels, np.arange(64) % 5, (0.5,) * 3, (0.5,) * 3)
    return source_of(labelled, 8, seed=1, augmentation=Augmentation(), device=device)


def trained(compute, folder=None, paths=PATHS):
    supernet = elastify(made(BottleneckNet), images(16, seed=1))
    compute.place_module(supernet)
    log, source = RunLog(stream=io.StringIO()), batches(compute.device)
    local = train_local(supernet, LOCAL, source, folder and folder / "local.pt", log, compute=compute)
    path = train_paths(supernet, paths, source, folder and folder / "paths.pt", log, compute=compute)
    return supernet.to("cpu"), local, path


def test_batches_are_the_same_on_the_gpu():
    for (here, labels), (there, others) in zip(batches()(0, 0), batches("cuda")(0, 0), strict=True):
        assert there.device.type == "cuda"
        torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-4)
        assert torch.equal(labels, others)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.02), ("bf16", 0.06), ("fp16", 0.06), ("auto", 0.06)])
def test_training_reaches_the_losses_of_the_cpu(precision, tolerance):
    _, local, path = trained(Compute())
    supernet, local_there, path_there = trained(Compute("cuda", precision))
    assert local_there == pytest.approx(local, rel=tolerance)
    assert path_there == pytest.approx(path, rel=tolerance)
    assert all(value.dtype != torch.bfloat16 for value in supernet.bodies.state_dict().values())
    assert torch.isfinite(supernet(images(4, seed=2), supernet.space.default)).all()


def test_a_finished_stage_is_taken_up_again_on_the_cpu_and_on_the_gpu(tmp_path):
    first, *losses = trained(Compute("cuda", "bf16"), tmp_path)
    for compute in (Compute("cuda", "bf16"), Compute("cpu", "auto")):
        again, *found = trained(compute, tmp_path)
        assert found == losses
        own, kept = first.bodies.state_dict(), again.bodies.state_dict()
        assert all(torch.equal(own[name], kept[name]) for name in own)
