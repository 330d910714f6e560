"""What a gate vector is: groups, the space they span, and one validated point of it. No I/O, no costs, no models.

A `GateSpace` is an ordered list of `GateGroup`s and a `Gates` is one canonical point of it. Three kinds of group exist:

==========  =======================  =====================================================
kind        value of the group       meaning
==========  =======================  =====================================================
`choice`    int in [0, size)         which alternative of a unit runs; 0 is the original
`subset`    `size` bits, >= 1 set    which channel-group modules of a layer are on
`experts`   `size` bits, >= 1 set    which task heads are on; their logits are concatenated
==========  =======================  =====================================================

Spaces are conditional. An alternative of a `choice` group may span a window of several consecutive `choice` groups (a
merged alternative); while it is chosen the other groups that it spans are inactive, and canonically 0. So one subnet
has exactly one vector, one text and one hash. Text form: groups joined by ``-``, a choice as its number, bits as
``b1011``.
"""

from __future__ import annotations

import operator
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

from edge_runtime.errors import GateError

__all__ = ["IN_8_BITS", "GateGroup", "GateKind", "GateSpace", "GateValue", "Gates", "is_in_8_bits"]

GateKind = Literal["choice", "subset", "experts"]
GateValue: TypeAlias = int | tuple[int, ...]

KINDS: tuple[GateKind, ...] = ("choice", "subset", "experts")
MAX_GROUPS = 4096
MAX_GROUP_SIZE = 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/+@=-]{0,99}")

IN_8_BITS = "int8"
"""Behind the label of what an alternative in 8 bits is a copy of; alone for a copy of the original."""


def is_in_8_bits(label: str) -> bool:
    """Whether a label is that of an alternative in 8 bits, as the builder names these; the graph alone is sure."""
    return label.rpartition("-")[2] == IN_8_BITS


@dataclass(frozen=True, slots=True)
class GateGroup:
    """One decision of the supernet. Raises `GateError` when built invalid."""

    name: str
    """Unique in the space; letters, digits and ``_.:/+@=-``, 1 to 100 characters. Example: ``stage2.unit1``."""

    kind: GateKind
    """`choice`, `subset` or `experts`."""

    labels: tuple[str, ...]
    """One name per alternative, module or expert, unique in the group. Example: ``("original", "half", "skip")``."""

    spans: tuple[int, ...] = ()
    """`choice` only: how many consecutive groups each alternative replaces, this one included; empty means all 1."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise GateError(f"gate group name {_shown(self.name)} is not valid", hint="letters, digits, _.:/+@=-")
        if self.kind not in KINDS:
            raise GateError(f"gate group {self.name!r} has kind {_shown(self.kind)}", hint=f"use one of {KINDS}")
        self._check_labels()
        if self.spans == ():
            object.__setattr__(self, "spans", (1,) * len(self.labels))
        self._check_spans()

    def _check_labels(self) -> None:
        if not isinstance(self.labels, tuple) or not 1 <= len(self.labels) <= MAX_GROUP_SIZE:
            raise GateError(f"gate group {self.name!r} needs 1 to {MAX_GROUP_SIZE} labels, got {_shown(self.labels)}")
        for label in self.labels:
            if not isinstance(label, str) or not _NAME.fullmatch(label):
                raise GateError(f"gate group {self.name!r} has the label {_shown(label)}, which is not valid")
        if twice := _repeated(self.labels):
            raise GateError(f"gate group {self.name!r} has two labels {twice!r}")

    def _check_spans(self) -> None:
        if not isinstance(self.spans, tuple) or len(self.spans) != len(self.labels):
            raise GateError(f"gate group {self.name!r} needs {len(self.labels)} spans, got {_shown(self.spans)}")
        if any(type(span) is not int or not 1 <= span <= MAX_GROUPS for span in self.spans):
            raise GateError(f"gate group {self.name!r} has a span that is not 1 to {MAX_GROUPS}: {_shown(self.spans)}")
        if self.spans[0] != 1:
            raise GateError(f"gate group {self.name!r}: alternative 0 is the original and must span 1 group")
        if self.kind != "choice" and max(self.spans) > 1:
            raise GateError(f"gate group {self.name!r} is {self.kind}; only choice groups have spans")

    @property
    def size(self) -> int:
        """Number of alternatives, modules or experts."""
        return len(self.labels)

    @property
    def width(self) -> int:
        """Entries that this group takes in the flat int64 vector: 1 for a choice, `size` for bits."""
        return 1 if self.kind == "choice" else self.size

    @property
    def window(self) -> int:
        """Number of groups in the window that starts here; 1 where nothing is merged."""
        return max(self.spans)

    @property
    def default(self) -> GateValue:
        """The value under which the supernet computes what the oracle computes."""
        return 0 if self.kind == "choice" else (1,) * self.size

    def check(self, value: GateValue) -> GateValue:
        """Return `value` in canonical Python types (numpy's integers are taken too), or raise `GateError`."""
        if self.kind == "choice":
            return self._check_choice(value)
        try:
            bits = tuple(map(operator.index, cast("Sequence[int]", value)))
        except TypeError as error:
            raise GateError(f"gate {self.name!r} takes {self.size} bits, got {_shown(value)}") from error
        if len(bits) != self.size or not {0, 1}.issuperset(bits):
            raise GateError(f"gate {self.name!r} takes {self.size} bits, got {_shown(value)}")
        if not any(bits):
            raise GateError(f"gate {self.name!r} must keep at least one of its {self.size} {self.kind} on")
        return tuple(map(int, bits))

    def _check_choice(self, value: GateValue) -> int:
        try:
            number = operator.index(cast("int", value))
        except TypeError as error:
            raise GateError(f"gate {self.name!r} takes one number, got {_shown(value)}") from error
        if isinstance(value, bool) or not 0 <= number < self.size:
            known = ", ".join(f"{index} {label}" for index, label in enumerate(self.labels[:8]))
            raise GateError(
                f"gate {self.name!r} has no alternative {_shown(value)}",
                hint=f"it has {known}" if self.size <= 8 else f"it has 0 to {self.size - 1}",
            )
        return number

    def to_json(self) -> dict[str, Any]:
        """The group as JSON types."""
        body: dict[str, Any] = {"name": self.name, "kind": self.kind, "labels": list(self.labels)}
        return body | {"spans": list(self.spans)} if self.window > 1 else body


@dataclass(frozen=True, slots=True)
class GateSpace:
    """An ordered list of groups whose merged windows never overlap. Raises `GateError` when built invalid."""

    groups: tuple[GateGroup, ...]
    """In the order of the network, input first."""

    _covered_by: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.groups, tuple) or not 1 <= len(self.groups) <= MAX_GROUPS:
            raise GateError(f"a gate space needs 1 to {MAX_GROUPS} groups, got {_shown(self.groups)}")
        if twice := _repeated([group.name for group in self.groups]):
            raise GateError(f"two gate groups share the name {twice!r}")
        object.__setattr__(self, "_covered_by", self._windows())

    def _windows(self) -> tuple[int, ...]:
        """For each group the index of the group whose window covers it (itself where none does)."""
        owner = list(range(len(self.groups)))
        for start, group in enumerate(self.groups):
            stop = start + group.window
            if stop > len(self.groups):
                raise GateError(f"the window of gate {group.name!r} ends after the last group")
            if group.window > 1 and owner[start] != start:
                raise GateError(f"the windows of gates {self.groups[owner[start]].name!r} and {group.name!r} overlap")
            for index in range(start + 1, stop):
                covered = self.groups[index]
                if covered.kind != "choice":
                    raise GateError(f"the window of gate {group.name!r} covers {covered.name!r}, which is no choice")
                owner[index] = start
        return tuple(owner)

    @property
    def width(self) -> int:
        """Length of the flat int64 vector that the graph is fed."""
        return sum(group.width for group in self.groups)

    @property
    def default(self) -> Gates:
        """Every group at its default: the oracle."""
        return Gates(self, tuple(group.default for group in self.groups))

    def covering(self, index: int) -> int:
        """Index of the group whose window covers group `index`; `index` itself where none does."""
        return self._covered_by[index]

    def active(self, values: Sequence[GateValue]) -> tuple[bool, ...]:
        """For each group whether it decides anything, given all values (a merged alternative switches others off)."""
        flags = [True] * len(self.groups)
        for index, group in enumerate(self.groups):
            value = values[index]
            if flags[index] and isinstance(value, int):
                for covered in range(index + 1, index + group.spans[value]):
                    flags[covered] = False
        return tuple(flags)

    def gates(self, values: Sequence[GateValue]) -> Gates:
        """A validated, canonical vector from one value per group."""
        return Gates(self, tuple(values))

    def parse(self, text: str) -> Gates:
        """Read the text form, like ``0-2-0-b1011`` or the word ``full``; inverse of `str`. Raises `GateError`."""
        if text.strip() == "full":
            return self.default
        parts = text.strip().split("-")
        if len(parts) != len(self.groups):
            raise GateError(
                f"gate text {_shown(text)} has {len(parts)} parts, this model has {len(self.groups)} groups",
                hint=f"write it like {self.default}, or 'full'",
            )
        return self.gates([_parse_part(group, part) for group, part in zip(self.groups, parts, strict=True)])

    def from_vector(self, vector: Sequence[int]) -> Gates:
        """Inverse of `Gates.vector`; numpy's integers are taken too. Raises `GateError`."""
        if len(vector) != self.width:
            raise GateError(f"gate vector has {len(vector)} entries, this model takes {self.width}")
        values: list[GateValue] = []
        start = 0
        for group in self.groups:
            part = tuple(vector[start : start + group.width])
            values.append(part[0] if group.kind == "choice" else part)
            start += group.width
        return self.gates(values)

    def from_json(self, values: object) -> Gates:
        """Inverse of `Gates.to_json`: a list with a number or a list of bits per group. Raises `GateError`."""
        if not isinstance(values, list) or not all(_is_json_value(value) for value in values):
            raise GateError(f"gates in JSON are a list of numbers or bit lists, got {_shown(values)}")
        return self.gates(values)

    def size(self) -> int:
        """Number of distinct subnets (exact, merged windows counted once)."""
        free = [1] * (len(self.groups) + 1)
        for index in reversed(range(len(self.groups))):
            group = self.groups[index]
            if group.kind == "choice":
                free[index] = sum(free[index + span] for span in group.spans)
            else:
                free[index] = (2**group.size - 1) * free[index + 1]
        return free[0]

    def enumerate(self) -> Iterator[Gates]:
        """Every subnet once, in lexicographic order of the values. Look at `size` first."""
        values: list[GateValue] = []
        # One open iterator per decision taken so far: a space may have more groups than Python has stack frames.
        trail = [(0, _values_of(self.groups[0]))]
        while trail:
            start, options = trail[-1]
            del values[start:]
            option = next(options, None)
            if option is None:
                trail.pop()
                continue
            value, span = option
            values.extend((value, *((0,) * (span - 1))))
            if len(values) == len(self.groups):
                yield Gates(self, tuple(values))
            else:
                trail.append((len(values), _values_of(self.groups[len(values)])))

    def to_json(self) -> list[dict[str, Any]]:
        """The space as JSON types, one object per group."""
        return [group.to_json() for group in self.groups]

    @classmethod
    def parse_json(cls, body: object) -> GateSpace:
        """Inverse of `to_json`. Raises `GateError`, never another exception, whatever the body."""
        if not isinstance(body, list) or len(body) > MAX_GROUPS:
            raise GateError("a gate space in JSON is a list of groups")
        return cls(tuple(_group_from_json(item) for item in body))


@dataclass(frozen=True, slots=True, eq=False)
class Gates:
    """One subnet: a validated, canonical, hashable point of a `GateSpace`. Raises `GateError` when built invalid."""

    space: GateSpace = field(repr=False)
    """The space that gives the values their meaning."""

    values: tuple[GateValue, ...]
    """One value per group; groups inside a chosen merged window are 0."""

    def __post_init__(self) -> None:
        groups = self.space.groups
        if len(self.values) != len(groups):
            raise GateError(f"{len(self.values)} gate values for {len(groups)} groups")
        checked = tuple(group.check(value) for group, value in zip(groups, self.values, strict=True))
        active = self.space.active(checked)
        canonical = tuple(value if on else 0 for value, on in zip(checked, active, strict=True))
        object.__setattr__(self, "values", canonical)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Gates):
            return NotImplemented
        return self.values == other.values and (self.space is other.space or self.space == other.space)

    def __hash__(self) -> int:
        return hash(self.values)

    def __str__(self) -> str:
        return "-".join(str(v) if isinstance(v, int) else "b" + "".join(map(str, v)) for v in self.values)

    @property
    def active(self) -> tuple[bool, ...]:
        """For each group whether it decides anything in this subnet."""
        return self.space.active(self.values)

    @property
    def is_default(self) -> bool:
        """Whether this is the oracle's own path."""
        return self == self.space.default

    def vector(self) -> tuple[int, ...]:
        """The flat integers that the graph is fed, `space.width` of them."""
        flat: list[int] = []
        for value in self.values:
            flat.extend((value,) if isinstance(value, int) else value)
        return tuple(flat)

    def replace(self, index: int, value: GateValue) -> Gates:
        """The same vector with the value of one group changed; normalised again."""
        return Gates(self.space, (*self.values[:index], value, *self.values[index + 1 :]))

    def to_json(self) -> list[int | list[int]]:
        """One number or list of bits per group."""
        return [value if isinstance(value, int) else list(value) for value in self.values]


def _values_of(group: GateGroup) -> Iterator[tuple[GateValue, int]]:
    if group.kind == "choice":
        yield from enumerate(group.spans)
        return
    for code in range(1, 2**group.size):
        yield tuple((code >> (group.size - 1 - bit)) & 1 for bit in range(group.size)), 1


def _parse_part(group: GateGroup, part: str) -> GateValue:
    if group.kind == "choice":
        if not re.fullmatch(r"[0-9]{1,4}", part):
            raise GateError(f"gate {group.name!r} takes a number, got {_shown(part)}", hint=f"0 to {group.size - 1}")
        return int(part)
    if not re.fullmatch(r"b[01]{1,1024}", part):
        raise GateError(
            f"gate {group.name!r} takes {group.size} bits like b{'1' * min(group.size, 8)}, got {_shown(part)}"
        )
    return tuple(int(bit) for bit in part[1:])


def _is_json_value(value: object) -> bool:
    if isinstance(value, list):
        return len(value) <= MAX_GROUP_SIZE and all(type(bit) is int for bit in value)
    return type(value) is int


def _group_from_json(item: object) -> GateGroup:
    keys = {"name", "kind", "labels"}
    if not isinstance(item, dict) or not keys <= item.keys() <= keys | {"spans"}:
        raise GateError("a gate group in JSON has the keys name, kind, labels and optionally spans")
    labels, spans = item["labels"], item.get("spans", [])
    if not isinstance(labels, list) or not isinstance(spans, list):
        raise GateError("a gate group in JSON has lists as labels and spans")
    return GateGroup(item["name"], item["kind"], tuple(labels), tuple(spans))


def _repeated(names: Sequence[str]) -> str:
    """The first name that occurs twice, or an empty text."""
    return next((name for name, count in Counter(names).items() if count > 1), "")


def _shown(value: object) -> str:
    """A short text of a value that may be huge, deeply nested or a number too long to print."""
    try:
        return reprlib.repr(value)
    except ValueError:
        return "a number of thousands of digits"
