"""Prompt -> 2K/4K video by both stages, each network on the device by itself: `pw generate`.

Begin with `pipeline`; `request` holds the options and checks them, `denoise` makes latents, `output` decodes them.
"""
