"""Which training is best at one, two, four and eight steps? (beyond the paper)

Claim     At one step MeanFlow beats shortcut training, and consistency training does not (their papers); two jumps of
          a consistency model beat one. At four steps noise-span aligned shortcut training is the best. All beat flow
          matching at one and two steps. At the same compute it is the same: arms named _flops have as many updates as
          the shortcut's training FLOPs buy; a consistency update costs as much as the mean of the shortcut's two.
Refuted   if MeanFlow is worse in psd than the shortcut at one step, or the shortcut worse than a rival at four.
Verdict   not run yet.
"""

from experiments import DETAIL, Ablation, all_of, better

FULL = "objective=shortcut step_sampler=exponential_index weighting=delta_sigma"

ABLATION = Ablation(
    fixed="stage=hires start=hires",
    varies=("objective", "solver", "train.updates"),
    arms={
        "flow": "objective=flow",
        "shortcut": FULL,
        "meanflow": "objective=meanflow",
        "consistency": "objective=consistency",
        # the training FLOPs of `shortcut`, held by tests/engine/test_few_step.py
        "flow_flops": "objective=flow train.updates=213",
        "meanflow_flops": "objective=meanflow train.updates=181",
    },
    across=("sampling.num_steps", (1, 2, 4, 8)),
    versus="first",
    metrics=(*DETAIL, "anchor_fidelity"),
    claims=(
        better("meanflow@1", "shortcut@1", "MeanFlow beats the shortcut at one step"),
        better("shortcut@1", "consistency@1", "the shortcut beats consistency training at one step"),
        better("consistency@2", "consistency@1", "two jumps of a consistency model beat one"),
        all_of(
            "at four steps the shortcut beats its rivals",
            *(better("shortcut@4", f"{rival}@4") for rival in ("meanflow", "consistency")),
        ),
        *(
            all_of(
                f"at {n} every few-step training beats flow matching",
                *(better(f"{arm}@{n}", f"flow@{n}") for arm in ("shortcut", "meanflow", "consistency")),
            )
            for n in (1, 2)
        ),
        better("meanflow_flops@1", "shortcut@1", "MeanFlow beats the shortcut at one step at the same compute"),
        better("shortcut@4", "meanflow_flops@4", "the shortcut beats MeanFlow at four steps at the same compute"),
        better("shortcut@4", "flow_flops@4", "the shortcut beats flow matching at four steps at the same compute"),
    ),
)
