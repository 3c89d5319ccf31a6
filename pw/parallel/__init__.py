"""One training in several processes: starts and monitors them, shares batches and tokens, splits weights (FSDP2).

Begin with `launch`, then `team`: results do not depend on the number of processes but by rounding.
"""
