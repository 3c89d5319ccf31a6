"""Time and memory of generation, metrics and updates on this machine, compared within one run: `pw bench`."""
