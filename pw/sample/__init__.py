"""A trained run -> its evaluation clips, from the same noise in every arm: `pw sample`.

Begin with `evaluate`; `clip_folders` has the folders that it writes.
"""
