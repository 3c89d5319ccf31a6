"""Eq. 4: does the 1/2-1/2 mean of the halves matter where spans are not linear?

Claim     In the index coordinate the halves of a long step span different noise; weighting them by their
          spans is right and 1/2-1/2 over-smooths (method-notes 5.3).
Refuted   if the span-weighted arm is no better than the equal one.
Verdict   (tiny, 3 seeds) Refuted: no difference is shown in any metric, and the 1/2-1/2 arm has the better
          means (psd 1.28 against 1.39 dB). In this coordinate both over-sharpen; a target that shrinks variance
          hides that here.
"""

from experiments import Ablation, better

ABLATION = Ablation(
    fixed="stage=hires sampling.num_steps=4 schedule.coordinate=index",
    varies=("target.halves",),
    arms={"equal": "target.halves=equal", "span_weighted": "target.halves=span_weighted"},
    claims=(better("span_weighted", "equal", "weighting the halves by their spans beats 1/2-1/2"),),
)
