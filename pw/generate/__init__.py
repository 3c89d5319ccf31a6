"""Prompt -> 2K/4K video by both stages, one network on the device at a time: `pw generate`.

Begin with `pipeline`, which calls `denoise` (text, anchor, detail) and `output` (decoding). `stage_runs` composes the
configurations of both stages.
"""
