"""May sampling begin from the anchor instead of noise? (beyond the paper)

Claim     From the anchor, noised to timestep 800, which is trained, two steps are as good as four from noise, and
          better than two from noise.
Refuted   if they are worse in psd than four steps from noise, or no better than two.
Verdict   (tiny, 5 seeds) holds 2, refuted 1. Two steps from the anchor are far better than two from noise (psd 2.32 ->
          0.95 dB) and a little worse than four (0.77), for half the evaluations; three are as good as four (0.72). The
          paper's sampler trains both of the two steps, and one of the four.
"""

from experiments import Ablation, better, not_worse

ABLATION = Ablation(
    fixed="stage=hires",
    varies=("sampling.init", "sampling.num_steps", "sampling.timesteps"),
    arms={
        "noise_4": "sampling.num_steps=4",
        "noise_2": "sampling.num_steps=2",
        "anchor_3": "sampling.init=anchor sampling.num_steps=3 sampling.timesteps=[800,600,300]",
        "anchor_2": "sampling.init=anchor sampling.num_steps=2 sampling.timesteps=[800,600]",
        "anchor_1": "sampling.init=anchor sampling.num_steps=1 sampling.timesteps=[800]",
    },
    versus="first",
    claims=(
        not_worse("anchor_2", "noise_4", "two steps from the anchor are as good as four from noise", margin=0.1),
        better("anchor_2", "noise_2", "two steps from the anchor are better than two from noise"),
        better("anchor_3", "anchor_2", "a third step from the anchor adds to two"),
    ),
    planned={
        "noise_4": "",
        "noise_2": "sampling.num_steps=2",
        **{
            f"anchor_{steps}": f"sampling.num_steps={steps} sampling.start=1.0 sampling.init=anchor "
            f"sampling.timesteps={times}"
            for steps, times in ((3, "[800,600,300]"), (2, "[800,600]"), (1, "[800]"))
        },
    },
)
