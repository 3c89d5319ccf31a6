"""Table 9.3 in both readings of a timestep: does the order of its rows depend on the coordinate?

Claim     Read as 1000 sigma or as an index before the shift, each row beats the one above.
Refuted   if a row is worse than the row above it in either reading.
Verdict   (tiny, 5 seeds) not resolved 2. In both readings three of the four steps are shown and that from the
          original sampler to the paper's candidates is not: psd 1.73, 0.93, 0.89, 0.73, 0.67 dB as 1000 sigma, 1.73,
          0.94, 0.97, 0.80, 0.69 as the index. Bias and calibration add more in the index reading, where every detail
          metric shows them.
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
