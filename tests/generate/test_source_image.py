"""pw.generate with `image=`: the first frame of a video is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pw.generate.output import load_codec
from pw.generate.pipeline import generate
from pw.generate.request import GenerateOptions, GenerationRequest, make_request
from pw.io.arguments import parse
from pw.io.video import read_video

SIZE = (
    *("scale=tiny", "scale.height=64", "scale.width=96", "scale.anchor_height=32", "scale.anchor_width=64"),
    *("scale.anchor_upsample=latent", "anchor.sampling.num_steps=2", "sampling.num_steps=2", "hires=random"),
    *("lossless=true", "prompt=a heron"),
)


@pytest.fixture
def call(pipeline: tuple[Path, Any], tmp_path: Path):
    """`call("image=a.png")` is a checked call that writes below tmp_path."""

    def request(*words: str) -> GenerationRequest:
        frames = () if any(word.startswith("frames=") for word in words) else ("frames=5",)
        words = (*SIZE, f"weights={pipeline[0]}", f"out={tmp_path / 'out'}", *frames, *words)
        return make_request(parse(GenerateOptions, words))

    return request


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Random pixels, 96 x 64."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


class TestAnImage:
    def test_is_the_first_latent_frame_of_both_stages(self, call: Any, image: Path, tmp_path: Path) -> None:
        request = call(f"image={image}")
        latents: dict[str, Any] = {}

        def keep(what: str, share: float, part: float) -> None:
            latents.update({path.name: load_file(path)["latent"] for path in (request.out / "latents").iterdir()})

        [path] = generate(request, keep)
        assert read_video(path).shape == (5, 64, 96, 3)
        assert not list((request.out / "latents").iterdir())
        prompt, codec = request.prompts[0], load_codec(request)
        pixels = torch.tensor(np.asarray(Image.open(image))).permute(2, 0, 1)[None, :, None] / 127.5 - 1
        full = codec.encode(pixels)
        torch.testing.assert_close(latents[request.latent_file(prompt).name][:, :, :1], full, atol=1e-5, rtol=0)
        anchor = load_file(request.anchor_file(prompt))["latent"]
        assert torch.equal(anchor[:, :, :1], latents[request.image_file(prompt, "anchor").name])
        manifest = json.loads(path.with_suffix(".mkv.json").read_text())
        assert (manifest["image"]["file"], manifest["image"]["changes"]) == (str(image), [])

    def test_is_part_of_the_name(self, call: Any, image: Path, tmp_path: Path) -> None:
        Image.new("RGB", (96, 64)).save(tmp_path / "b.png")
        names = {call(*words).prompts[0].name for words in ((), (f"image={image}",), (f"image={tmp_path / 'b.png'}",))}
        assert len(names) == 3

    def test_is_upright_cut_in_its_middle_and_over_black(self, call: Any, tmp_path: Path) -> None:
        picture = np.zeros((90, 40, 4), np.uint8)  # turned by EXIF: 40 rows of 90
        picture[..., 0], picture[..., 3], picture[:45, :, 3] = 200, 255, 0
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise by 90 degrees
        Image.fromarray(picture).save(tmp_path / "c.png", exif=exif)
        source = call(f"image={tmp_path / 'c.png'}").image
        # 96 : 64 of 40 rows are 60 columns, of 90
        assert (source.size, source.crop) == ((40, 90), (slice(0, 40), slice(15, 75)))
        pixels = source.pixels()
        assert pixels.shape == (40, 60, 3)
        assert (pixels[:, :30, 0] == 200).all()  # the lower half is on the left
        assert (pixels[:, 30:] == 0).all()
        line = source.line(call(f"image={tmp_path / 'c.png'}").hires)
        assert "left and right are cut, 33.3% of it; it is smaller than the video and enlarged" in line
        assert line.endswith("what is transparent is black")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("image=/nowhere.png",), r"image=/nowhere\.png: no such file"),
            (("image=TEXT",), r"image=.*text\.png: is no image that can be read"),
            (("image=PNG", "frames=1"), r"frames=1: image= is the first frame of a video"),
            (("image=PNG", "anchors_from=."), r"anchors_from=…: has a first frame of its own"),
            (("image=PNG", "video=a.mp4"), r"video=…: has a first frame of its own"),
        ],
    )
    def test_that_cannot_be_used_is_told(
        self, call: Any, image: Path, tmp_path: Path, words: tuple[str, ...], message: str
    ) -> None:
        (tmp_path / "text.png").write_text("no image")
        names = {"PNG": str(image), "TEXT": str(tmp_path / "text.png")}
        words = tuple("=".join(names.get(part, part) for part in word.split("=")) for word in words)
        with pytest.raises(ValueError, match=message):
            call(*words)
