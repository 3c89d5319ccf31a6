"""Overrides -> a checked `Run`: its configuration, strategies and settings, and the signatures that name its results.

Begin with `build`. It composes `conf/` with Hydra (`compose`), builds the strategies, checks how they fit together
(`cross_checks`), and hashes configuration and code (`signatures`, `code`).
"""
