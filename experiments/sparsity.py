"""Which keys does self-attention need?

Claim     Trained from a dense start with five ninths of the keys, no pattern is worse than dense attention; with a
          third, blocks chosen once per clip from the anchor do as well as blocks chosen in each layer and head, and
          both beat a window.
Refuted   if a pattern is worse at five ninths, the anchor's blocks are worse than those of the keys at a third, or
          either is worse than the window.
Verdict   (tiny, 5 seeds) holds 1, refuted 1, not resolved 1. At five ninths of the keys every pattern is as good as
          dense attention (psd 0.77 -> 0.77 to 0.79 dB). At a third the window still is (0.78) and beats the chosen
          blocks (keys 0.84, anchor 0.91): what a clip of 6 x 6 tokens needs is near.
"""

from experiments import DETAIL, Ablation, all_of, better, not_worse

# Of 6 x 6 tokens in a frame, and of 9 blocks: 12 tokens or 3 blocks are a third, 20 or 5 are five ninths.
ABLATION = Ablation(
    fixed="stage=hires",
    varies=("attention",),
    arms={
        "dense": "attention=dense",
        "window_5_9": "attention=window attention.window=[4,5]",
        "topk_5_9": "attention=topk attention.density=0.55",
        "anchor_5_9": "attention=anchor attention.density=0.55",
        "window_1_3": "attention=window attention.window=[3,4]",
        "topk_1_3": "attention=topk attention.density=0.33",
        "anchor_1_3": "attention=anchor attention.density=0.33",
    },
    versus="first",
    metrics=(*DETAIL, "anchor_fidelity"),
    claims=(
        all_of(
            "with five ninths of the keys no pattern is worse than dense attention",
            *(not_worse(f"{name}_5_9", "dense", margin=0.1) for name in ("window", "topk", "anchor")),
        ),
        not_worse("anchor_1_3", "topk_1_3", "a third chosen by the anchor does as well as by the keys", margin=0.1),
        all_of(
            "with a third of the keys, blocks that are chosen beat a window",
            *(better(f"{name}_1_3", "window_1_3") for name in ("topk", "anchor")),
        ),
    ),
)
