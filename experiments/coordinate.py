"""Is a timestep 1000 sigma, or an index before the shift?

Claim     Read as 1000 sigma, quality rises with the number of steps; read as the index, the 3-step grid
          (1000, 667, 333) lies off the trained ladder and is worse than 2 steps (docs/method.md).
Refuted   if the index reading is better at 3, 4 or 5 steps, or its 3 steps are better than its 2.
Verdict   (tiny, 5 seeds) holds 1, refuted 1, not resolved 1. Read as 1000 sigma each step more is better (psd 2.32,
          1.07, 0.77, 0.63 dB at 2 to 5 steps). Read as the index, 2 steps do as well as the other reading's 3 (1.01),
          but 3 are better still (0.86), not worse; at 4 and 5 the readings do not differ in psd.
"""

from experiments import Ablation, all_of, any_of, better

ABLATION = Ablation(
    fixed="stage=hires",
    varies=("schedule.coordinate",),
    arms={"timestep": "schedule.coordinate=timestep", "index": "schedule.coordinate=index"},
    across=("sampling.num_steps", (2, 3, 4, 5)),
    claims=(
        all_of(
            "read as 1000 sigma, each step more is better",
            *(better(f"timestep@{n}", f"timestep@{n - 1}") for n in (3, 4, 5)),
        ),
        better("index@2", "index@3", "read as the index, 3 steps are worse than 2"),
        any_of(
            "read as 1000 sigma, 3, 4 or 5 steps are better than read as the index",
            *(better(f"timestep@{n}", f"index@{n}") for n in (3, 4, 5)),
        ),
    ),
)
