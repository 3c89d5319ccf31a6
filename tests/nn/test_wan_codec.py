"""pw.nn.codec.WanCodec: Wan's VAE, whole and in tiles."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pw.nn.codec import WanCodec, blend_tiles, channels_last, window
from pw.nn.options import WanVAE, spans

WHOLE = WanVAE(factor=16, frames_factor=4, channels=4, precision="fp32", tile=0, overlap=0)
TILED = replace(WHOLE, tile=128, overlap=64)


@pytest.fixture(scope="module")
def vae(pipeline: tuple[Path, Any]) -> Any:
    return pipeline[1].vae


@pytest.fixture(scope="module")
def latent() -> Tensor:
    return torch.randn(1, 4, 2, 4, 20, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def whole(vae: Any, latent: Tensor) -> Tensor:
    return WanCodec(WHOLE, vae).decode(latent)


class TestTheCodec:
    def test_decodes_as_the_pipeline_does(self, pipeline: tuple[Path, Any], latent: Tensor, whole: Tensor) -> None:
        vae = pipeline[1].vae
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
        with torch.no_grad():
            reference = vae.decode(latent * std + mean, return_dict=False)[0]
        assert whole.shape == (1, 3, 5, 64, 320)
        assert torch.equal(whole, reference)

    def test_encodes_to_the_normalised_mode(self, vae: Any) -> None:
        video = torch.rand(1, 3, 5, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
        result = WanCodec(WHOLE, vae).encode(video)
        with torch.no_grad():
            mode = vae.encode(video).latent_dist.mode()
        assert result.shape == (1, 4, 2, 4, 4)
        for channel, (mean, std) in enumerate(zip(vae.config.latents_mean, vae.config.latents_std, strict=True)):
            torch.testing.assert_close(result[:, channel], (mode[:, channel] - mean) / std)

    def test_is_loaded_from_the_published_layout(
        self, pipeline: tuple[Path, Any], latent: Tensor, whole: Tensor
    ) -> None:
        assert torch.equal(WanCodec.load(WHOLE, pipeline[0], "cpu").decode(latent), whole)

    def test_of_another_make_than_the_configuration_says_is_refused(self, vae: Any) -> None:
        with pytest.raises(ValueError, match=r"codec\.channels=48: the VAE of these weights has 4"):
            WanCodec(replace(WHOLE, channels=48), vae)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((1, 3, 4, 64, 64), r"scale\.frames=4: .* use 1 or 5"),
            ((1, 3, 5, 64, 72), r"codec\.factor=16 does not divide 64 x 72"),
        ],
    )
    def test_refuses_clips_that_do_not_fit(self, vae: Any, shape: tuple[int, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            WanCodec(WHOLE, vae).encode(torch.zeros(shape))


class TestTheDecoderOnAGpu:
    """What is done to it there changes nothing but the order of its numbers in memory, and rounding."""

    def test_in_channels_last_makes_the_same(self, pipeline: tuple[Path, Any], latent: Tensor, whole: Tensor) -> None:
        codec = WanCodec.load(WHOLE, pipeline[0], "cpu")
        channels_last(codec.vae)
        weights = [part.weight for part in codec.vae.modules() if isinstance(part, torch.nn.Conv3d)]
        assert any(w.is_contiguous(memory_format=torch.channels_last_3d) and not w.is_contiguous() for w in weights)
        torch.testing.assert_close(codec.decode(latent), whole, atol=1e-5, rtol=0)

    @pytest.mark.slow
    def test_compiled_makes_the_same_with_graphs_for_the_first_clip_alone(
        self, pipeline: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of its tiles one has graphs, for the frames that fill the convolutions' memory and for the others. Without
        Inductor, which takes three minutes for this on a CPU."""
        monkeypatch.setattr("torch.compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
        codec, plain = WanCodec.load(TILED, pipeline[0], "cpu", compile=True), WanCodec.load(TILED, pipeline[0], "cpu")
        count = lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]  # noqa: E731  (of the whole process)
        graphs, before = [], count()
        for seed in range(2):
            latent = torch.randn(1, 4, 6, 4, 20, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(codec.decode(latent), plain.decode(latent), atol=1e-4, rtol=0)
            graphs.append(count() - before)
        assert 0 < graphs[0] == graphs[1] <= 4


class TestTiles:
    def test_equal_one_piece_away_from_seams_but_for_the_attention(
        self, vae: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without its one attention the decoder sees about ten positions far: further from a seam nothing differs."""
        monkeypatch.setattr(vae.decoder.mid_block.attentions[0], "forward", lambda x: x)
        latent = torch.randn(1, 4, 1, 2, 44, generator=torch.Generator().manual_seed(0))
        one = WanCodec(WHOLE, vae).decode(latent)
        many = WanCodec(replace(WHOLE, tile=384, overlap=64), vae).decode(latent)
        difference = (one - many).abs().amax(dim=(0, 1, 2, 3))
        # tiles of 24 positions at 0 and 20: the first one's end is seen from position 14 on
        assert difference[: 13 * 16].max() < 1e-5
        assert difference[-13 * 16 :].max() < 1e-5
        assert difference[20 * 16 : 24 * 16].max() > 1e-3  # a tile does not see what is beyond its edge

    def test_differ_from_one_piece_by_no_more_than_stated(self, vae: Any, latent: Tensor, whole: Tensor) -> None:
        """With attention over a tile instead of the picture, random weights and 4 tiles of 8 positions: mean
        |difference| below a quarter of the signal's, and below 15 % where only one tile is."""
        difference = (WanCodec(TILED, vae).decode(latent) - whole).abs()
        assert difference.mean() < 0.25 * whole.abs().mean()
        assert difference[..., :32].mean() < 0.15 * whole.abs().mean()

    def test_encode_to_the_shape_of_one_piece(self, vae: Any) -> None:
        video = torch.rand(1, 3, 1, 64, 320, generator=torch.Generator().manual_seed(1)) * 2 - 1
        one, many = WanCodec(WHOLE, vae).encode(video), WanCodec(TILED, vae).encode(video)
        assert many.shape == one.shape == (1, 4, 1, 4, 20)
        assert (one - many).abs().mean() < 0.25 * one.std()

    def test_come_in_bands_of_rows_from_top_to_bottom(self, vae: Any) -> None:
        tall = torch.randn(1, 4, 1, 12, 4, generator=torch.Generator().manual_seed(0))
        bands = list(WanCodec(TILED, vae).bands(tall))
        assert [row for row, _ in bands] == [0, 64]
        assert [band.shape[-2] for _, band in bands] == [64, 128]
        assert torch.equal(torch.cat([b for _, b in bands], -2), WanCodec(TILED, vae).decode(tall))

    @given(st.integers(1, 60), st.integers(2, 20), st.data())
    def test_cover_everything_and_overlap_as_asked(self, length: int, tile: int, data: st.DataObject) -> None:
        overlap = data.draw(st.integers(0, tile // 2))
        result = spans(length, tile, overlap)
        assert result[0].start == 0
        assert result[-1].stop == length
        for one, other in pairwise(result):
            assert other.start > one.start
            assert one.stop - other.start >= overlap
        assert len({span.stop - span.start for span in result}) == 1
        assert result[0].stop <= tile or length <= tile

    @given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 16), st.data())
    def test_of_what_is_the_same_everywhere_leave_no_trace(
        self, height: int, width: int, tile: int, data: st.DataObject
    ) -> None:
        overlap = data.draw(st.integers(0, tile // 2))
        picture = torch.randn(1, height, width, generator=torch.Generator().manual_seed(0))
        bands = blend_tiles(lambda rows, columns: picture[..., rows, columns], (height, width), tile, overlap, 1)
        torch.testing.assert_close(torch.cat([band for _, band in bands], dim=-2), picture)

    def test_blend_by_a_cosine_that_adds_up_to_one(self) -> None:
        first, second = window(slice(0, 16), 24, 8), window(slice(8, 24), 24, 8)
        assert torch.equal(first[:8], torch.ones(8))
        assert torch.equal(second[8:], torch.ones(8))
        torch.testing.assert_close(first[8:] + second[:8], torch.ones(8))
        assert first.min() > 0


class TestTheOptions:
    def test_of_auto_are_768_px_where_no_memory_decides(self) -> None:
        auto, number = replace(WHOLE, tile="auto", overlap=128), replace(WHOLE, tile=768, overlap=128)
        assert auto.tiles(1440, 2560) == number.tiles(1440, 2560)
        assert auto.encoding == number.encoding

    def test_that_make_tensors_beyond_32_bits_are_refused(self) -> None:
        WHOLE.check_decode(121, 1440, 1600)  # 512 x 6 x 722 x 802 numbers
        WHOLE.check_decode(1, 1440, 2560)
        replace(WHOLE, decoder="tiny", decoder_file="x").check_decode(121, 2144, 3840)
        with pytest.raises(ValueError, match=r"codec\.tile=0: decoding 1440 x 2560 px .* 2\.8e\+09 .*codec\.tile=auto"):
            WHOLE.check_decode(121, 1440, 2560)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"tile": 100}, r"codec\.tile=100: a multiple of codec\.factor=16"),
            ({"tile": 64, "overlap": 48}, r"codec\.overlap=48: at most half of codec\.tile=64"),
            ({"channels": 0}, r"codec\.channels=0: needs at least 1"),
        ],
    )
    def test_are_checked(self, changes: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replace(WHOLE, **changes)

    def test_of_the_full_size_make_the_vae_of_704_7_million_parameters(self) -> None:
        from diffusers import AutoencoderKLWan

        from pw.nn.codec import WAN_VAE

        with torch.device("meta"):
            vae = AutoencoderKLWan(**WAN_VAE, latents_mean=[0.0] * 48, latents_std=[1.0] * 48)
        assert sum(p.numel() for p in vae.parameters()) == pytest.approx(704.7e6, rel=1e-4)
