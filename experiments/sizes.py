"""May the first steps be smaller? (beyond the paper)

Claim     With batches of both sizes in training, the first two of four steps at half size lose nothing; without them
          they do. Three smaller steps lose detail.
Refuted   if the trained half-size arm is worse in psd than full size at every step.
Verdict   not run yet.
"""

from experiments import Ablation, better, not_worse

ABLATION = Ablation(
    fixed="stage=hires sampling.num_steps=4",
    varies=("sampling.sizes", "train.sizes"),
    arms={
        "full": "",
        "half_untrained": "sampling.sizes=[0.5,0.5,1,1]",
        "half": "sampling.sizes=[0.5,0.5,1,1] train.sizes=[0.5,1]",
        "half_eighth": "sampling.sizes=[0.5,0.5,1,1] train.sizes=[0.5,1,1,1,1,1,1,1]",
        "half_three": "sampling.sizes=[0.5,0.5,0.5,1] train.sizes=[0.5,1]",
        "full_mixed": "train.sizes=[0.5,1]",
    },
    versus="first",
    claims=(
        not_worse("half", "full", "two trained steps at half size lose nothing", margin=0.1),
        better("half", "half_untrained", "batches of both sizes are needed"),
        better("half", "half_three", "three smaller steps lose detail"),
    ),
    planned={
        "full": "",
        "half_untrained": "sampling.sizes=[0.5,0.5,1,1]",
        "half": "sampling.sizes=[0.5,0.5,1,1]",
        "half_eighth": "sampling.sizes=[0.5,0.5,1,1]",
        "half_three": "sampling.sizes=[0.5,0.5,0.5,1]",
        "full_mixed": "",
    },
)
