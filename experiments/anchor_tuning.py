"""Fig. 9.2: must stage I be tuned at the anchor's resolution?

Claim     A model of full-size clips collapses at the anchor's size; a short tuning there recovers it.
Refuted   if the tuned anchor model is no nearer to real clips than the untuned one.
Verdict   not run yet
"""

from experiments import DETAIL, Ablation

ABLATION = Ablation(
    fixed="stage=anchor optimizer.lr=1e-3 optimizer.final_lr=0.1",
    varies=("train.updates",),
    arms={"untuned": "train.updates=0", "tuned": "train.updates=1000"},
    # at the anchor's own size, against real clips degraded as stage II is trained on (D11)
    native=True,
    metrics=DETAIL,
)
