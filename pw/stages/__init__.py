"""The two stages as LightningModules: `AnchorModel` fixes structure, `HiresSynth` paints detail under it."""
