"""From any traced torch CNN to an elastic supernet: units, alternatives, merged windows.

Units are found on the traced graph, never by a family's name. Read in this order: `trace` (module to graph), `units`
(graph to units), `channels` (which channels belong together), `narrow` (importance-pruned copies), `refit` (closed-form
initialisation), `supernet` (the result).
"""

from builder.elastify.supernet import ElasticOptions, Features, Supernet, elastify
from builder.elastify.units import Segment, find_segments

__all__ = ["ElasticOptions", "Features", "Segment", "Supernet", "elastify", "find_segments"]
