"""Several processes as one training: started and followed, batches and tokens shared, weights split (FSDP2).

Begin with `launch`, then `share`: results do not depend on the number of processes but by rounding.
"""
