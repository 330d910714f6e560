"""Adaptation: from images and a budget to the subnet to run, with the reasons; and the thread that does it quietly.

`AdaptJob` shortlists, measures and chooses in slices; `BackgroundJob` drives one in a thread with a duty cycle;
`Control` moves along the frontier by the policy; `Memory` is what survives a restart.
"""

from edge_runtime.adaptation.choice import Choice, choose
from edge_runtime.adaptation.finals import Finals
from edge_runtime.adaptation.job import AdaptJob
from edge_runtime.adaptation.outcome import AdaptResult, without_unusable
from edge_runtime.adaptation.plan import AdaptPlan
from edge_runtime.adaptation.status import AdaptStatus, Candidate

__all__ = [
    "AdaptJob",
    "AdaptPlan",
    "AdaptResult",
    "AdaptStatus",
    "Candidate",
    "Choice",
    "Finals",
    "choose",
    "without_unusable",
]
