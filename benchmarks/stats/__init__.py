"""Scores -> intervals, differences and verdicts: statistics on arrays, nothing read or written.

`comparison` compares arms over seeds, `paired` two systems over prompts. Begin with `comparison`.
"""
