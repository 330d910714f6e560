import math

import pytest

torch = pytest.importorskip("torch")

from builder.distill import LocalConfig, LoopConfig, PathConfig, PathSampler, measure_prior, train_local, train_paths
from builder.distill.losses import normalised_error, output_distance
from builder.distill.sampler import multiply_accumulates
from builder.elastify import ElasticOptions, elastify
from builder.errors import BuildError
from builder.runlog import RunLog
from edge_runtime.additive import AdditiveCost, Plan, fastest
from edge_runtime.errors import StateError, UsageError
from tests.builder.nets import BottleneckNet, images, made

pytestmark = pytest.mark.builder

STEPS = 6


def batches(epoch, first):
    for number in range(first, STEPS):
        x = images(16, seed=100 + STEPS * epoch + number)
        yield x, torch.arange(16) % 5


class CutError(Exception):
    """Stands for a kill between two steps."""


def stopping_after(steps):
    def source(epoch, first):
        for number, batch in enumerate(batches(epoch, first), start=epoch * STEPS + first):
            if number == steps:
                raise CutError
            yield batch

    return source


def unit_errors(supernet, x):
    with torch.no_grad():
        teacher = supernet.features(x, supernet.space.default)
        return [
            normalised_error(supernet.alternative(index, 1)(teacher.entries[index]), teacher.exits[index]).item()
            for index in range(len(supernet.units))
        ]


def spoiled():
    """A supernet whose alternatives were moved away from their closed-form start."""
    supernet = elastify(made(BottleneckNet), images(32))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in supernet.bodies.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.abs().mean())
    return supernet


def test_local_stage_teaches_each_unit_its_original(tmp_path):
    supernet, x = spoiled(), images(64, seed=9)
    before = unit_errors(supernet, x)
    train_local(supernet, LocalConfig(LoopConfig(6, STEPS, 1e-3)), batches, tmp_path / "local.pt", RunLog())
    after = unit_errors(supernet, x)
    assert sum(after) < sum(before)
    assert not supernet.bodies.training


@pytest.mark.parametrize("labelled", [True, False])
def test_path_stage_brings_subnets_nearer_to_the_oracle(tmp_path, labelled):
    supernet, x = spoiled(), images(64, seed=9)
    oracle = made(BottleneckNet)

    def source(epoch, first):
        return ((x, oracle(x).argmax(1) if labelled else None) for x, _ in batches(epoch, first))

    def distance():
        return sum(value for row in measure_prior(supernet, x) for value in row)

    before = distance()
    train_paths(supernet, PathConfig(LoopConfig(8, STEPS, 2e-3)), source, tmp_path / "paths.pt", RunLog())
    assert distance() < before


@pytest.mark.parametrize("train", [train_local, train_paths])
def test_a_run_cut_anywhere_and_resumed_ends_with_the_same_bits(tmp_path, train, monkeypatch):
    monkeypatch.setattr("builder.training.keeper.CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr("builder.training.keeper.SAVING_SHARE", math.inf)
    monkeypatch.setattr("builder.training.keeper.SNAPSHOT_EVERY", 2)
    config = (LocalConfig if train is train_local else PathConfig)(LoopConfig(2, STEPS, 1e-3))
    whole, cut = elastify(made(BottleneckNet), images(32)), elastify(made(BottleneckNet), images(32))
    torch.manual_seed(7)
    train(whole, config, batches, tmp_path / "whole.pt", RunLog())
    torch.manual_seed(7)
    with pytest.raises(CutError):
        train(cut, config, stopping_after(STEPS + 2), tmp_path / "cut.pt", RunLog())
    fresh = elastify(made(BottleneckNet), images(32))
    train(fresh, config, batches, tmp_path / "cut.pt", RunLog())
    for (name, value), other in zip(whole.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize("guided", [False, True])
def test_paths_are_spread_over_cost(guided):
    supernet = elastify(made(BottleneckNet), images(32))
    prior = measure_prior(supernet, images(32, seed=8))
    torch.manual_seed(0)
    damage = AdditiveCost.damage(supernet.space, prior) if guided else None
    sampler = PathSampler(multiply_accumulates(supernet), damage)
    full = supernet.macs(supernet.space.default)
    shares = torch.tensor([supernet.macs(sampler.sample()) / full for _ in range(400)])
    counts = torch.histc(shares, bins=4, min=float(shares.min()), max=1.0)
    assert counts.min() >= 0.5 * counts.mean()


def test_paths_are_spread_over_latency_where_it_is_known():
    supernet = elastify(made(BottleneckNet), images(32))
    # A device on which the unit with the fewest operations takes most of the time.
    shares = [[a.macs / unit.alternatives[0].macs for a in unit.alternatives] for unit in supernet.units]
    least = min(range(len(shares)), key=lambda index: supernet.units[index].alternatives[0].macs)
    rows = [[share * (20.0 if index == least else 1.0) for share in row] for index, row in enumerate(shares)]
    latency = AdditiveCost(supernet.space, 1.0, tuple(map(tuple, rows)))

    def unevenness(sampler):
        """Largest distance between the distribution of drawn latencies and the uniform one."""
        torch.manual_seed(0)
        drawn = torch.tensor([latency(sampler.sample()) for _ in range(400)]).sort().values
        low, high = latency(fastest(latency)), latency(supernet.space.default)
        return ((drawn - low) / (high - low) - torch.arange(400) / 400).abs().max().item()

    assert unevenness(PathSampler(latency)) < 0.7 * unevenness(PathSampler(multiply_accumulates(supernet)))


def test_a_latency_table_of_another_supernet_is_refused(tmp_path):
    supernet = elastify(made(BottleneckNet), images(32))
    other = multiply_accumulates(elastify(made(BottleneckNet), images(32), ElasticOptions(window=1)))
    with pytest.raises(UsageError, match="another supernet"):
        train_paths(supernet, PathConfig(LoopConfig(1, STEPS, 1e-3)), batches, None, RunLog(), latency=other)


def test_each_output_has_its_own_distance_and_the_same_weight():
    logits, wanted = torch.randn(8, 5), torch.randn(8, 5)
    maps, target = torch.randn(8, 2, 4, 4), torch.randn(8, 2, 4, 4)
    kl = (wanted.softmax(1) * (wanted.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()
    error = (maps - target).pow(2).mean() / target.var()
    assert output_distance([logits], [wanted]).item() == pytest.approx(kl.item(), rel=1e-5)
    assert output_distance([logits, maps], [wanted, target]).item() == pytest.approx((kl + error).item() / 2, rel=1e-5)
    assert output_distance([wanted, target], [wanted, target]).item() == pytest.approx(0, abs=1e-6)
    # One value per image has no classes to compare: a softmax over it would always agree.
    assert output_distance([torch.zeros(8, 1)], [torch.randn(8, 1)]).item() > 0.1


@pytest.mark.parametrize(
    "changes", [{"paths_per_step": 0}, {"temperature": 0.0}, {"label_weight": 1.5}, {"feature_weight": -1.0}]
)
def test_path_settings_that_cannot_be_meant_are_refused(changes):
    with pytest.raises(UsageError):
        PathConfig(LoopConfig(1, 1, 1e-3), **changes)


def test_guided_paths_damage_less_and_still_try_every_alternative():
    supernet = elastify(made(BottleneckNet), images(32))
    damage = AdditiveCost.damage(supernet.space, measure_prior(supernet, images(32, seed=8)))
    torch.manual_seed(0)
    blind, guided = ([sampler.sample() for _ in range(400)] for sampler in samplers(supernet, damage))
    assert sum(map(damage, guided)) < 0.8 * sum(map(damage, blind))
    for index, group in enumerate(supernet.space.groups):
        assert {gates.values[index] for gates in guided} == set(range(group.size))


def test_late_paths_are_what_a_search_might_choose():
    supernet = elastify(made(BottleneckNet), images(32))
    cost = multiply_accumulates(supernet)
    damage = AdditiveCost.damage(supernet.space, measure_prior(supernet, images(32, seed=8)))
    sampler = PathSampler(cost, damage)
    torch.manual_seed(0)

    def over_the_least(progress):
        drawn = [sampler.sample(progress) for _ in range(200)]
        return sum(damage(gates) - damage(Plan(cost, damage, cost(gates)).best()) for gates in drawn) / len(drawn)

    early, middle, late = map(over_the_least, (0.0, 0.5, 1.0))
    assert late < 0.3 * middle < 0.3 * early
    shares = [cost(sampler.sample(1.0)) / cost(supernet.space.default) for _ in range(200)]
    assert max(shares) - min(shares) > 0.4  # still over all costs


def samplers(supernet, damage):
    cost = multiply_accumulates(supernet)
    return PathSampler(cost), PathSampler(cost, damage)


def test_the_prior_is_the_divergence_of_whole_runs():
    supernet, x = spoiled(), images(70, seed=8)  # more than one batch
    prior = measure_prior(supernet, x)
    with torch.no_grad():
        wanted = supernet(x, supernet.space.default).softmax(1)
        for index, group in enumerate(supernet.space.groups):
            for value in range(1, group.size):
                own = supernet(x, supernet.space.default.replace(index, value)).softmax(1)
                divergence = (wanted * (wanted / own).log()).sum(1).mean().item()
                assert prior[index][value] == pytest.approx(divergence, rel=1e-3, abs=1e-6)


def test_the_prior_is_zero_for_originals_and_never_below():
    supernet = elastify(made(BottleneckNet), images(32))
    prior = measure_prior(supernet, images(32, seed=8))
    assert all(row[0] == 0 for row in prior)
    assert min(min(row) for row in prior) >= 0
    assert [len(row) for row in prior] == [group.size for group in supernet.space.groups]


def test_a_checkpoint_of_another_oracle_or_other_settings_is_refused(tmp_path):
    config = LocalConfig(LoopConfig(1, STEPS, 1e-3))
    train_local(elastify(made(BottleneckNet), images(32)), config, batches, tmp_path / "local.pt", RunLog())
    other = elastify(made(BottleneckNet, seed=1), images(32))
    with pytest.raises(StateError, match="does not belong"):
        train_local(other, config, batches, tmp_path / "local.pt", RunLog())
    longer = LocalConfig(LoopConfig(2, STEPS, 1e-3))
    with pytest.raises(StateError, match="does not belong"):
        train_local(elastify(made(BottleneckNet), images(32)), longer, batches, tmp_path / "local.pt", RunLog())


@pytest.mark.parametrize(
    "changed", [("builder.distill.sampler.NARROWING", (0.1, 0.5)), ("builder.distill.paths.FREEZE_STATISTICS_AT", 0.5)]
)
def test_a_checkpoint_of_other_draws_of_paths_is_refused(tmp_path, monkeypatch, changed):
    def train():
        supernet = elastify(made(BottleneckNet), images(32))
        config = PathConfig(LoopConfig(1, STEPS, 1e-3))
        train_paths(supernet, config, batches, tmp_path / "paths.pt", RunLog())

    train()
    monkeypatch.setattr(*changed)
    with pytest.raises(StateError, match="does not belong"):
        train()


def test_a_source_without_batches_is_refused(tmp_path):
    config = LocalConfig(LoopConfig(1, STEPS, 1e-3))
    with pytest.raises(UsageError, match="nothing"):
        train_local(spoiled(), config, lambda epoch, first: [], tmp_path / "local.pt", RunLog())


def test_a_stage_without_steps_is_refused():
    with pytest.raises(UsageError):
        LoopConfig(0, 10, 1e-3)


def skips_alone():
    class Skipping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inner = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1)
            self.head = torch.nn.Linear(8, 4)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            return self.head((x + torch.relu(self.inner(x))).mean((2, 3)))

    torch.manual_seed(0)
    return elastify(Skipping().eval(), images(8))


def test_a_network_of_skips_alone_has_nothing_to_train(tmp_path):
    supernet = skips_alone()
    assert {label for group in supernet.space.groups for label in group.labels} == {"original", "skip"}
    loop = LoopConfig(epochs=1, steps_per_epoch=2, learning_rate=1e-3)
    with RunLog(None) as log:
        assert train_local(supernet, LocalConfig(loop), batches, tmp_path / "local.pt", log) == 0.0
        assert train_paths(supernet, PathConfig(loop), batches, tmp_path / "paths.pt", log) == 0.0


def test_the_prior_refuses_alternatives_that_are_not_finite():
    supernet = elastify(BottleneckNet().eval(), images(8))
    with torch.no_grad():
        for parameter in supernet.bodies.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(BuildError, match="is not finite"):
        measure_prior(supernet, images(8))
