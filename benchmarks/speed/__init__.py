"""`pw bench`: time and memory of generation, metrics and training updates on this machine."""
