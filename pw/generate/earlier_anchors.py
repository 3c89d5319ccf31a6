"""`anchors_from=`: the anchors that an earlier call has made."""

from __future__ import annotations

from pathlib import Path

from pw.io.arguments import ConfigError


def earlier_anchor(folder: Path, text: str, seed: int, expected: tuple[int, ...]) -> Path:
    """The anchor of a prompt from an earlier call. Raises ConfigError for none, several, or one of another shape."""
    from safetensors import SafetensorError, safe_open

    matches = []
    for path in sorted((folder / "anchors").glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                metadata, shape = file.metadata() or {}, tuple(file.get_slice("latent").get_shape())
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"anchors_from={folder}: {path.name} cannot be read ({error})") from error
        if (metadata.get("prompt"), metadata.get("seed")) == (text, str(seed)):
            matches.append((path, shape))
    if len(matches) != 1:
        names = ", ".join(path.name for path, _ in matches)
        number = f"{len(matches)} anchors ({names})" if matches else "no anchor"
        raise ConfigError(
            f"anchors_from={folder}: {number} of {text[:60]!r} with seed {seed}; it is the `out` of an earlier call, "
            "with one for each prompt"
        )
    [(path, shape)] = matches
    if shape != expected:
        raise ConfigError(f"anchors_from={folder}: {path.name} is {shape}, stage II expects {expected}")
    return path
