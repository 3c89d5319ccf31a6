"""Runs ablations: ablation file -> plan of runs -> jobs -> scores -> table with the verdict on its claim.

Begin with `run_ablation` (`pw ablation`), then `ablation` (the file format), `plan` and `job`. `pool` runs jobs on this
machine, `queue/` on SLURM; `outcome/` makes the table. `compare/` is `pw compare`, `power_analysis/` is `pw power`,
`judge/` is `pw judge`.
"""
