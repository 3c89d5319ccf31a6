"""The network: diffusers' Wan transformer, unforked, with a stride embedding and an anchor-guided injector hooked on.

`options` names what can be chosen (no torch), `embed` the stride embedding, `injector` Eqs. 1-2, `backbone` the
whole, `codec` video <-> latent, `unipc` diffusers' solver behind our interface.
"""
