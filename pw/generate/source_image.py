"""An image that is the first frame of a video, checked before anything loads (D126)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pw.generate.source_video import centre_crop
from pw.io.arguments import ConfigError
from pw.run.build import Run


@dataclass(frozen=True)
class SourceImage:
    """One image. size: (rows, columns) as it is displayed; crop: the part of it that is kept."""

    path: Path
    size: tuple[int, int]
    crop: tuple[slice, slice]
    has_alpha: bool
    fingerprint: str

    def needs(self, run: Run) -> list[str]:
        """What is done to it, in words."""
        (rows, columns), words = self.crop, []
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if (height, width) != self.size:
            edges = "left and right" if height == self.size[0] else "top and bottom"
            words.append(f"{edges} are cut, {1 - height * width / (self.size[0] * self.size[1]):.1%} of it")
        if height < run.scale.height or width < run.scale.width:
            words.append("it is smaller than the video and enlarged")
        return [*words, *(["what is transparent is black"] if self.has_alpha else [])]

    def line(self, run: Run) -> str:
        """The line that is printed before work begins."""
        head = f"image={self.path.name}: {self.size[1]} x {self.size[0]}, the first frame of the video"
        return "; ".join([head, *self.needs(run)])

    def entry(self, run: Run) -> dict[str, Any]:
        """The manifest's entry."""
        rows, columns = self.crop
        crop = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        return {"file": str(self.path), "fingerprint": self.fingerprint, "crop": crop, "changes": self.needs(run)}

    def pixels(self) -> Any:
        """The part that is kept, over black: uint8 [h, w, 3]."""
        import numpy as np
        from PIL import Image

        image = _upright(self.path)
        black = Image.new("RGBA", image.size, "black")
        flat = Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
        return np.ascontiguousarray(np.asarray(flat)[self.crop])


def read_image(path: Path, run: Run) -> SourceImage:
    """The image, fully decoded once. Raises ConfigError unless it can be read, and a video follows it."""
    from pw.io.wan_weights import fingerprint

    if run.codec.latent_frames(run.scale.frames) < 2:
        raise ConfigError(f"frames={run.scale.frames}: image= is the first frame of a video; give it more frames")
    if not path.is_file():
        raise ConfigError(f"image={path}: no such file")
    try:
        image = _upright(path)
    except (OSError, ValueError, SyntaxError) as error:
        raise ConfigError(f"image={path}: is no image that can be read ({error})") from error
    size = image.height, image.width
    has_alpha = image.has_transparency_data
    return SourceImage(path, size, centre_crop(size, run.scale.size), has_alpha, fingerprint(path))


def _upright(path: Path) -> Any:
    """The image as its EXIF orientation says."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        image.load()
        return ImageOps.exif_transpose(image)
