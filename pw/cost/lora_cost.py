"""Parameters, FLOPs and bytes of low-rank adapters of rank r in training, see `pw.cost.counts`."""

from __future__ import annotations

from pw.cost.counts import BYTES, Flops, Precision
from pw.nn import options


def lora_parameters(lora: options.Lora | None, backbone: options.Wan) -> int:
    """r (in + out) for each layer: 4 r D for a target of both attentions, r (D + f) for one of the FFN."""
    if lora is None:
        return 0
    d, f = backbone.width, backbone.ffn_dim
    return backbone.num_layers * lora.rank * sum(d + f if name.startswith("ffn") else 4 * d for name in lora.targets)


def lora_flops(lora: options.Lora | None, backbone: options.Wan, tokens: int, text_tokens: int) -> Flops:
    """FLOPs that low-rank adapters, not merged, add to an evaluation; of a text its keys and values have adapters."""
    if lora is None:
        return Flops()
    of_text = 2 * backbone.width * sum(name in ("to_k", "to_v") for name in lora.targets)
    of_text *= backbone.num_layers * lora.rank
    return Flops(linear=2 * (tokens * (lora_parameters(lora, backbone) - of_text) + text_tokens * of_text))


def lora_saved_bytes(lora: options.Lora | None, backbone: options.Wan, tokens: int, precision: Precision) -> float:
    """Bytes that low-rank adapters add to what one block saves for its backward, and to the peak of that backward.

    L b times: D for the input of queries, keys and values, D for that of the other attention's queries, D and f for
    those of the two FFN layers, r for each layer's A x. Fake tensors: equal for what is saved, up to 1 % less for the
    peak. Dropout adds a mask of a byte and a masked input in b bytes for each layer, and numbers to draw (assumed).
    """
    if lora is None:
        return 0
    b, d, f = BYTES[precision], backbone.width, backbone.ffn_dim
    inputs = {"to_q": [d, d], "to_k": [d], "to_v": [d], "to_out.0": [d, d], "ffn.net.0.proj": [d], "ffn.net.2": [f]}
    layers = [length for name in lora.targets for length in inputs[name]]
    saved = d * any(name in ("to_q", "to_k", "to_v") for name in lora.targets) + d * ("to_q" in lora.targets)
    saved += d * ("ffn.net.0.proj" in lora.targets) + f * ("ffn.net.2" in lora.targets) + lora.rank * len(layers)
    dropout = (1 + b) * sum(layers) + (4 + b) * max(layers) if lora.dropout else 0
    return tokens * (b * saved + dropout)
