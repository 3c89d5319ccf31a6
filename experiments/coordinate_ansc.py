"""Table 9.3 in both readings of a timestep: does the order of its rows depend on the coordinate?

Claim     Read as 1000 sigma or as an index before the shift, each row beats the one above.
Refuted   if a row is worse than the row above it in either reading.
Verdict   Not run yet.
"""

from itertools import pairwise

from experiments import DETAIL, Ablation, all_of, better
from experiments.ansc import ABLATION as ANSC

ABLATION = Ablation(
    fixed=ANSC.fixed,
    varies=ANSC.varies,
    arms=ANSC.arms,
    across=("schedule.coordinate", ("timestep", "index")),
    claims=tuple(
        all_of(
            f"each row beats the one above, read as {reading}",
            *(better(f"{arm}@{value}", f"{above}@{value}") for above, arm in pairwise(ANSC.arms)),
        )
        for value, reading in (("timestep", "1000 sigma"), ("index", "the index"))
    ),
    metrics=(*DETAIL, "anchor_fidelity"),
)
