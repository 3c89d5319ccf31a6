"""The network: diffusers' Wan transformer, unmodified, with a stride embedding and an anchor-guided injector added.

Begin with `backbone`, then `adapters` (Eqs. 1-2, and the stride). `options` imports no torch.
"""
