"""Table 9.3 in both readings of a timestep: does the order of its rows depend on the coordinate?

Claim     Read as 1000 sigma or as an index before the shift, each row beats the one above.
Refuted   if a row is worse than the row above it in either reading.
Verdict   (tiny, 5 seeds) not resolved 2. In both readings three of the four steps are shown and that from the
          original sampler to the paper's candidates is not: psd 1.75, 1.03, 1.02, 0.81, 0.77 dB as 1000 sigma, 1.75,
          0.98, 1.00, 0.75, 0.67 as the index.
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
