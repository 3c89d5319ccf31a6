"""Table 9.3 in both readings of a timestep: does the order of its rows depend on the coordinate?

Claim     Read as 1000 sigma or as an index before the shift, each row beats the one above.
Refuted   if a row is worse than the row above it in either reading.
Verdict   Not run yet.
"""

from experiments import DETAIL, Ablation
from experiments.ansc import ABLATION as ANSC

ABLATION = Ablation(
    fixed=ANSC.fixed,
    varies=ANSC.varies,
    arms=ANSC.arms,
    across=("schedule.coordinate", ("timestep", "index")),
    metrics=(*DETAIL, "anchor_fidelity"),
)
