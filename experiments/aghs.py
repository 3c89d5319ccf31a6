"""Table 4: what does each part of anchor-guided synthesis add?

Claim     Each row beats the one above: the untuned anchor, the tuned anchor, the anchor added element-wise,
          the injector with its gain fixed at 1, the gated injector.
Refuted   if a row is worse than the row above it.
Verdict   (tiny, 5 seeds) holds 1, refuted 2, not resolved 1. Stage II beats any anchor (psd 27.4 -> 2.1 dB). A tuned
          anchor scores worse than an untuned one, since it is blurred by design and the metrics reward detail (see
          `anchor_tuning`). The injector follows its anchor better than plain addition does (anchor 15.0 -> 6.8e-3)
          and is worse in detail (psd 2.11 -> 2.67 dB). The gate: no difference shown.
"""

from experiments import DETAIL, Ablation, better

# At this scale stage II departs from the base, which knows no anchor, as the paper's departs from Wan2.2.
LONGER = "start=base optimizer.lr=1e-3 optimizer.final_lr=0.1"
SYNTHESIS = "stage=hires train.updates=400 anchors=generated"

ABLATION = Ablation(
    paper="table_4",
    fixed=LONGER,
    varies=("stage", "injector", "objective", "train.updates", "anchors", "sampling.num_steps"),
    arms={
        "anchor_untuned": "stage=anchor train.updates=0",
        "anchor": "stage=anchor train.updates=600",
        "add": f"{SYNTHESIS} injector=add",
        "alpha_zero": f"{SYNTHESIS} injector=alpha_zero",
        "gated": f"{SYNTHESIS} injector=gated",
    },
    ceiling="gated",
    metrics=(*DETAIL, "anchor_fidelity"),
    claims=(
        better("anchor", "anchor_untuned", "the tuned anchor beats the untuned one"),
        better("add", "anchor", "stage II, the anchor added element-wise, beats the anchor"),
        better("alpha_zero", "add", "the injector, its gain fixed at 1, beats addition"),
        better("gated", "alpha_zero", "the gate beats the fixed gain"),
    ),
)
