"""Fig. 9.3: must the transformer itself be trained?

Claim     Training only injector and stride embedding leaves artefacts that training everything removes.
Refuted   if the trainable transformer is worse than the frozen one.
Verdict   (tiny, 5 seeds) holds 1. psd 2.53 -> 1.92 dB, every detail metric with it, and the trainable transformer
          follows its anchor better (42 -> 18e-3). From a start that knows no anchor, 400 updates leave both far from
          `ansc`.
"""

from experiments import DETAIL, Ablation, better

ABLATION = Ablation(
    fixed="stage=hires start=base train.updates=400 optimizer.lr=1e-3 optimizer.final_lr=0.1",
    varies=("train.trainable",),
    arms={"frozen": "train.trainable=adapters", "trainable": "train.trainable=all"},
    ceiling="trainable",
    metrics=(*DETAIL, "anchor_fidelity"),
    claims=(better("trainable", "frozen", "training the transformer beats training the adapters alone"),),
)
