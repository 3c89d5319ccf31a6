"""Runs the jobs of an ablation on SLURM through submitit. Begin with `launcher`, then `hand_over`."""
