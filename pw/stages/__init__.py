"""The two stages as LightningModules: `AnchorModel` fixes structure, `HiresSynth` paints detail under it.

Begin with `stage`, what they share: network, EMA, one update, sampling. `velocity` evaluates the network with guidance.
"""
