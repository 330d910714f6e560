"""Hypothesis strategies for gate spaces, subnets and cost tables, shared by the tests of the value rooms."""

from hypothesis import strategies as st

from edge_runtime.additive import AdditiveCost
from edge_runtime.gates import GateGroup, Gates, GateSpace


@st.composite
def spaces(draw, max_groups=5, kinds=("choice", "subset", "experts")):
    """Any valid space: windows of merged alternatives that never overlap, all kinds of group."""
    groups = []
    count = draw(st.integers(1, max_groups))
    while len(groups) < count:
        window = draw(st.integers(1, min(3, count - len(groups))))
        kind = "choice" if window > 1 else draw(st.sampled_from(kinds))
        groups.append(_group(draw, len(groups), kind, window))
        for _ in range(window - 1):
            groups.append(_group(draw, len(groups), "choice", 1))
    return GateSpace(tuple(groups))


def _group(draw, index, kind, window):
    plain = draw(st.integers(1, 3))
    merged = [draw(st.integers(2, window)) for _ in range(draw(st.integers(1, 2)))] if window > 1 else []
    labels = tuple(f"a{number}" for number in range(plain + len(merged)))
    return GateGroup(f"unit{index}", kind, labels, (1,) * plain + tuple(merged) if merged else ())


@st.composite
def subnets(draw, space):
    """Any subnet of a space, also from values that are not canonical."""
    return Gates(space, draw(raw_values(space)))


def raw_values(space):
    """Values of every group on its own, where covered groups may hold anything."""
    return st.tuples(*(_value(group) for group in space.groups))


def _value(group):
    if group.kind == "choice":
        return st.integers(0, group.size - 1)
    return st.tuples(*[st.integers(0, 1)] * group.size).filter(any)


@st.composite
def costs(draw, space, low=0.0, high=8.0):
    """A cost table; entries in quarters, so that sums are exact and ties happen."""
    entry = st.integers(int(low * 4), int(high * 4)).map(lambda quarters: quarters / 4)
    rows = tuple(tuple(draw(entry) for _ in range(group.size)) for group in space.groups)
    return AdditiveCost(space, draw(st.integers(1, 4)) / 1.0, rows)
