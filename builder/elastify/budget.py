"""Keep the alternatives that save the most compute per byte, under a limit on the supernet's storage.

What an alternative saves is the compute of the units that it replaces less its own. First every unit gets its best
alternatives in turns (two narrower copies, then one merged alternative for each window), then the rest goes by saving
per byte. An alternative that does not fit the rest of the budget is left out; smaller ones behind it may still fit.
"""

from __future__ import annotations

from collections.abc import Sequence

from builder.elastify.offer import Offer

__all__ = ["select_offers"]

NARROW_FIRST = 2
"""Narrower copies that every unit gets before anything else is bought."""


def select_offers(offers: Sequence[Offer], unit_macs: Sequence[int], limit_bytes: float) -> list[Offer]:
    """The chosen offers, in their given order.

    Args:
        offers: everything that could be built, by unit, in the order of the gate's values.
        unit_macs: multiply-accumulates of each unit's original.
        limit_bytes: bytes that all of them together may take beside the oracle.
    """

    def saving_per_byte(offer: Offer) -> float:
        replaced = sum(unit_macs[offer.unit + step] for step in range(offer.span))
        return (replaced - offer.macs) / max(1, offer.bytes)

    rank = {id(offer): number for number, offer in enumerate(sorted(offers, key=saving_per_byte, reverse=True))}
    chosen: set[int] = set()
    spent = 0
    for offer in sorted(offers, key=lambda o: (_turn(o, offers), rank[id(o)])):
        if spent + offer.bytes <= limit_bytes:
            chosen.add(id(offer))
            spent += offer.bytes
    return [offer for offer in offers if id(offer) in chosen]


def _turn(offer: Offer, offers: Sequence[Offer]) -> int:
    """0: free of storage; 1: a unit's first narrower copies; 2: a window's cheapest merged alternative; 3: the rest."""
    if offer.bytes == 0:
        return 0
    kin = sorted((o for o in offers if o.unit == offer.unit and o.merged == offer.merged and o.bytes), key=_bytes)
    place = next(number for number, other in enumerate(kin) if other is offer)
    if offer.merged:
        return 2 if place == 0 else 3
    return 1 if place < NARROW_FIRST else 3


def _bytes(offer: Offer) -> int:
    return offer.bytes
