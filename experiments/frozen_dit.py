"""Fig. 9.3: must the transformer itself be trained?

Claim     Training only injector and stride embedding leaves artefacts that training everything removes.
Refuted   if the trainable transformer is no better than the frozen one.
Verdict   not run yet
"""

from experiments import DETAIL, Ablation

ABLATION = Ablation(
    fixed="stage=hires start=base train.updates=600 optimizer.lr=1e-3 optimizer.final_lr=0.1",
    varies=("train.trainable",),
    arms={"frozen": "train.trainable=adapters", "trainable": "train.trainable=all"},
    ceiling="trainable",
    metrics=(*DETAIL, "anchor_fidelity"),
)
