"""Fig. 9.1: how does stage II bear flawed anchors?

Claim     Stage II re-synthesises detail under flawed anchors instead of copying the flaws: detail (psd,
          swd) hardly falls, structure follows the anchor.
Refuted   if psd or swd under flawed anchors is worse than under the training degradation.
Verdict   (tiny, 5 seeds) refuted 2. Flawed anchors cost 1.65 dB in psd (0.77 -> 2.42) and double swd; structure
          follows the flaw (anchor 2.5 -> 9.8e-3). Sharper anchors than trained on cost as much (clean: 2.37 dB):
          stage II wants the anchors it was trained with.
"""

from experiments import Ablation, not_worse

ABLATION = Ablation(
    fixed="stage=hires",
    varies=("anchors",),
    arms={"as_trained": "anchors=reference", "clean": "anchors=clean", "flawed": "anchors=flawed"},
    versus="first",
    claims=(
        not_worse("flawed", "as_trained", "psd hardly falls under flawed anchors", margin=0.1),
        not_worse("flawed", "as_trained", "swd hardly falls under flawed anchors", metric="swd", margin=0.1),
    ),
)
