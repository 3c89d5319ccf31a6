"""`pw power`: the smallest difference that a design of n prompts and m seeds shows, before anything is trained.

Begin with `power_planner`; the statistics are in `spread`.
"""
