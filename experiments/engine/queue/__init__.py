"""Runs the jobs of an ablation on SLURM through submitit.

`launcher` groups jobs and reads the settings, `hand_over` submits them and waits.
"""
