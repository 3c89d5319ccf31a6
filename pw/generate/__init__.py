"""Prompt -> 2K/4K video by both stages, each network on the device by itself: `pw generate`. Begin with `pipeline`."""
