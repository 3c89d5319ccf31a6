"""Fig. 9.3: must the transformer itself be trained?

Claim     Training only injector and stride embedding leaves artefacts that training everything removes.
Refuted   if the trainable transformer is no better than the frozen one.
Verdict   (tiny, 3 seeds) In part: the trainable transformer follows its anchor better (26.8 -> 16.3e-3); in
          detail no difference is shown (psd 1.68 against 1.43 dB).
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
