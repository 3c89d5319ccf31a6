"""An ablation's jobs on SLURM, by submitit: grouped into units, submitted, and waited for.

Begin with `launcher`.
"""
