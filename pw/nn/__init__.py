"""The network: diffusers' Wan transformer, unmodified, with a stride embedding and an anchor-guided injector added.

Begin with `backbone`, then `injector` (Eqs. 1-2) and `embed` (the stride). `options` holds what can be chosen and
imports no torch; `codec` is video <-> latent, `text` prompt -> embedding, `convert` reads checkpoints of any layout.
"""
