"""What carries out an ablation: its file -> a plan of runs -> jobs -> scores -> a table that answers its claim.

Begin with `run_ablation` (`pw ablation`), then `ablation` (what a file holds), `plan` and `job`. Jobs run in a `pool`
on this machine or are handed to SLURM by `queue/`; `outcome/` makes the table; `compare/` and `power_analysis/` are
`pw compare` and `pw power`.
"""
