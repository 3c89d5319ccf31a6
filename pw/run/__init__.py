"""Overrides -> a checked `Run`: compose (Hydra), strategies and settings (typed), cross-checks, signatures, code."""
