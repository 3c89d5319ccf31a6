"""Prompt -> embedding, by Wan's UMT5 encoder, cached on disk by prompt.

An embedding is cut to the prompt's true length and padded with zeros, without an attention mask, as Wan was trained.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


class TextEncoder:
    """Tokenizer and encoder of weights in diffusers' layout, loaded at the first prompt that is not cached.

    tokens  length of an embedding: 512
    cache   folder of `<digest>.safetensors`, one per prompt, weights, type and `tokens`
    name    of the weights, part of the digest
    device  of the encoder: 11.4 GB in bf16
    """

    def __init__(self, weights: Path, tokens: int, cache: Path, name: str, device: str, dtype: torch.dtype) -> None:
        self.weights, self.tokens, self.cache, self.name = weights, tokens, cache, name
        self.device, self.dtype = device, dtype
        self._tokenizer: Any = None
        self._encoder: Any = None

    def check(self, prompts: Sequence[str], key: str = "") -> None:
        """Raises ValueError naming a prompt that is longer than `tokens`.

        key  name of the prompt in the message; without it, prompts are numbered and must not be empty
        """
        for number, prompt in enumerate(prompts, start=1):
            name = key or f"prompt {number} of {len(prompts)}"
            if not prompt.strip() and not key:
                raise ValueError(f"{name} is empty: write a text prompt")
            length = len(self._tokens(prompt))
            if length > self.tokens:
                raise ValueError(
                    f"{name} has {length} tokens, the encoder takes {self.tokens}; shorten it: {prompt[:60]!r}…"
                )

    def encode(self, prompt: str) -> Tensor:
        """A prompt's embedding, [tokens, D] on the CPU: read from the cache, or encoded and cached."""
        embedding = self.unpadded(prompt)
        return torch.cat([embedding, embedding.new_zeros(self.tokens - len(embedding), embedding.shape[1])])

    def unpadded(self, prompt: str) -> Tensor:
        """`encode` without padding. A prompt longer than `tokens` is cut (see `check`)."""
        path = self._path(prompt)
        if not path.exists():
            self._write(path, self._encode(prompt))
        return load_file(path)["embedding"]

    def free(self) -> None:
        self._encoder = None
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _path(self, prompt: str) -> Path:
        text = f"{self.name}\n{self.dtype}\n{self.tokens}\n{prompt}"
        return self.cache / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"

    def _tokens(self, prompt: str) -> list[int]:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self.weights / "tokenizer", local_files_only=True)
        tokenizer: Any = self._tokenizer
        return tokenizer(prompt_clean(prompt), add_special_tokens=True)["input_ids"]

    @torch.no_grad()
    def _encode(self, prompt: str) -> Tensor:
        if self._encoder is None:
            from transformers import UMT5EncoderModel

            path = self.weights / "text_encoder"
            encoder: Any = UMT5EncoderModel.from_pretrained(path, dtype=self.dtype, local_files_only=True)
            self._encoder = encoder.eval().to(self.device)
        ids = self._tokens(prompt)
        if len(ids) > self.tokens:
            ids = [*ids[: self.tokens - 1], ids[-1]]  # the last one is the end token
        padding = self._tokenizer.pad_token_id or 0
        padded = torch.tensor([ids + [padding] * (self.tokens - len(ids))], device=self.device)
        mask = (torch.arange(self.tokens, device=self.device) < len(ids)).long()[None]
        return self._encoder(padded, mask).last_hidden_state[0, : len(ids)].cpu()

    def _write(self, path: Path, embedding: Tensor) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file({"embedding": embedding.contiguous()}, partial)
            os.replace(partial, path)
        except SafetensorError as error:  # a full disk
            raise OSError(f"{path}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
