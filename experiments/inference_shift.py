"""Is a plain flow model on a less shifted grid as good as shortcut training?

Claim     Shortcut training beats a plain flow model at every inference shift, also at the flow model's
          best.
Refuted   if the flow model at its best shift is as good as the shortcut model at the training shift.
Verdict   not run yet
"""

from experiments import Ablation

ABLATION = Ablation(
    fixed="stage=hires sampling.num_steps=4",
    varies=("objective",),
    arms={"flow": "objective=flow", "shortcut": "objective=shortcut"},
    across=("sampling.shift", (1.0, 2.0, 3.0, 5.5)),
)
