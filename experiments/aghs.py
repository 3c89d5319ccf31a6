"""Table 4: what does each part of anchor-guided synthesis add?

Claim     Each row beats the one above: the untuned anchor, the tuned anchor, the anchor added element-wise,
          the injector with its gain fixed at 1, the gated injector.
Refuted   if a row is worse than the row above it, by the paired 95 % interval.
Verdict   (tiny, 3 seeds) In part. Stage II beats any anchor (psd 26.2 -> 1.7 dB). A tuned anchor scores worse
          than an untuned one here, since it is blurred by design and the metrics reward detail (see
          `anchor_tuning`). Injector: better structure than plain addition (anchor 18.2 -> 8.1e-3), worse detail
          (swd 25.7 -> 33.9e-3). The gate: no difference shown.
"""

from experiments import DETAIL, Ablation, better

# At this scale stage II departs from the base, which knows no anchor, as the paper's departs from Wan2.2 (D12).
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
