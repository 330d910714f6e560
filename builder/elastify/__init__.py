"""From any traced torch CNN to an elastic supernet: units, alternatives, merged windows.

Units are found on the traced graph, never by a family's name. Read in this order: `trace` (module to graph; `purify`,
`static_shapes`, `exported` and `nodes` help it), `regions` and `units` (graph to units), `segments` (units to a
program), `layout` and `channels` (which channels belong together), `narrow` (importance-pruned copies), `norms` (BN put
back), `offer` and `budget` (what each unit gets), `refit` (closed-form initialisation), `elastify` (all of it),
`supernet` (the result), `folded` (its form for training), `report` and `reporting` (what was found, and why not more).
"""

from builder.elastify.elastify import elastify
from builder.elastify.folded import with_folded_originals
from builder.elastify.options import ElasticOptions
from builder.elastify.report import ElastifyReport, NothingElasticError, UnitReport
from builder.elastify.segments import Program, Segment, find_program, find_segments
from builder.elastify.supernet import Features, Supernet

__all__ = [
    "ElasticOptions",
    "ElastifyReport",
    "Features",
    "NothingElasticError",
    "Program",
    "Segment",
    "Supernet",
    "UnitReport",
    "elastify",
    "find_program",
    "find_segments",
    "with_folded_originals",
]
