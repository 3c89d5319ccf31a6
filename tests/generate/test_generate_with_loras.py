"""`pw generate lora=…`: LoRAs of others in either stage, in the identity of a video, refused before anything loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from small_loras import WAN, write_lora

from pw.generate.pipeline import generate
from pw.generate.request import GenerateOptions, GenerationRequest, make_request
from pw.io.arguments import ConfigError, parse, to_words
from pw.io.video import read_video

SMALL = (
    *("scale=tiny", "scale.height=64", "scale.width=96", "scale.anchor_height=32", "scale.anchor_width=64"),
    *("scale.anchor_upsample=latent", "anchor.sampling.num_steps=2", "sampling.num_steps=2", "hires=random"),
    *("frames=5", "lossless=true", "prompt=a heron"),
)


@pytest.fixture
def call(pipeline: tuple[Path, Any], tmp_path: Path):
    """`call("lora=…")` is a checked call that writes below tmp_path."""

    def request(*words: str) -> GenerationRequest:
        out = () if any(word.startswith("out=") for word in words) else (f"out={tmp_path / 'out'}",)
        return make_request(parse(GenerateOptions, [*SMALL, f"weights={pipeline[0]}", *out, *words]))

    return request


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write_lora(tmp_path / "a.safetensors", "diffusers", 1),
        write_lora(tmp_path / "b.safetensors", "kohya", 2),
    )


def anchor_of(request: GenerationRequest) -> Any:
    return load_file(request.anchor_file(request.prompts[0]))["latent"]


class TestAVideoWithALora:
    def test_is_another_video_with_the_same_anchor(self, call: Any, files: tuple[Path, Path]) -> None:
        requests = plain, hires, anchor = call(), call(f"lora={files[0]}"), call(f"anchor.lora={files[0]}")
        videos = [read_video(generate(request)[0]) for request in requests]
        assert len({request.prompts[0].name for request in requests}) == 3
        assert not np.array_equal(videos[0], videos[1])
        assert anchor_of(hires).equal(anchor_of(plain))
        assert not anchor_of(anchor).allclose(anchor_of(plain), atol=1e-2)
        note = json.loads(hires.manifest(hires.prompts[0]).read_text())
        assert note["hires"]["lora"] == [{"file": str(files[0]), "scale": 1.0}]
        assert note["anchor"]["lora"] == []

    def test_at_scale_0_is_the_video_without(self, call: Any, files: tuple[Path, Path]) -> None:
        [plain], [silent] = (generate(call(*words)) for words in ((), (f"lora={files[0]}", "lora_scale=0")))
        assert np.array_equal(read_video(plain), read_video(silent))

    @pytest.mark.slow
    def test_does_not_depend_on_where_blocks_wait(self, call: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
        two = (f"lora=[{files[0]},{files[1]}]", "lora_scale=[1,-0.5]")
        [plain] = generate(call(*two))
        [offloaded] = generate(call(*two, "trainer.offload=group", f"out={tmp_path / 'offloaded'}"))
        assert np.array_equal(read_video(plain), read_video(offloaded))
        [rounded] = generate(call(*two, "trainer.storage=fp8"))
        assert not np.array_equal(read_video(plain), read_video(rounded))


class TestARequest:
    def test_is_named_by_content_order_and_scale(self, call: Any, files: tuple[Path, Path]) -> None:
        a, b = files
        words = [(f"lora={a}",), (f"lora={b}",), (f"lora={a},{b}",), (f"lora=[{a},{b}]", "lora_scale=[1,0.5]")]
        assert len({call(*each).identity for each in words}) == 4
        assert call(f"lora={a}").identity == call(f"lora={a}", "lora_scale=[1]").identity
        before = call(f"lora={a}").identity
        write_lora(a, "diffusers", 9)
        assert call(f"lora={a}").identity != before

    def test_is_handed_to_other_processes_as_it_is(self, call: Any, files: tuple[Path, Path]) -> None:
        request = call(f"lora=[{files[0]},{files[1]}]", "lora_scale=[0.123456789,-1]", f"anchor.lora={files[1]}")
        again = make_request(parse(GenerateOptions, to_words(request.options)))
        assert again.identity == request.identity
        assert again.hires_loras == ((files[0], 0.123457), (files[1], -1.0))
        assert again.anchor_loras == ((files[1], 1.0),)

    def test_refuses_what_does_not_fit_by_file_tensor_and_shapes(self, call: Any, tmp_path: Path) -> None:
        wide = write_lora(tmp_path / "wide.safetensors", "kohya", choice=replace(WAN, num_attention_heads=4))
        message = r"^anchor.lora=.*wide.safetensors: transformer\.blocks\.\d\..* \(2, 64\), for a layer \(32, 32\)"
        with pytest.raises(ConfigError, match=message):
            call(f"anchor.lora={wide}")

    def test_refuses_files_that_are_not_there_and_other_numbers_of_scales(
        self, call: Any, files: tuple[Path, Path]
    ) -> None:
        for words, message in (
            (("lora=gone.safetensors",), "lora=gone.safetensors: there is no such .safetensors file"),
            ((f"anchor.lora={files[0].parent}",), "is no .safetensors file"),
            ((f"lora={files[0]}", "lora_scale=[1,2]"), r"lora_scale=\[1.0, 2.0\]: 2 scales for 1 files"),
            (("lora_scale=1",), r"1 scales for 0 files"),
            ((f"lora={files[0]}", "lora_scale=[high]"), "a number from -100 to 100"),
        ):
            with pytest.raises(ConfigError, match=message):
                call(*words)
