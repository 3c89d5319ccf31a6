"""A trained run -> evaluation clips in `outputs/videos/<signature>/`, from the same noise in every arm: `pw sample`.

Begin with `evaluate`.
"""
