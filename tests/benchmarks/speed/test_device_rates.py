"""benchmarks.speed.device_rates: what is measured becomes rates by kind of work."""

from __future__ import annotations

import pytest

from benchmarks.speed.device_rates import codec_rates, file_rate, network_rates
from pw.cost.counts import Flops, forward_flops
from pw.run.build import build


class TestOfTheNetwork:
    def test_are_those_that_made_the_times(self) -> None:
        """Of a device with 500 and 300 TFLOP/s, by the evaluations of 2K and 4K and one with few tokens."""
        backbone = build(["scale=2k"]).backbone
        entries = []
        for tokens in (111_600, 249_240, 28_800):
            flops = forward_flops(backbone, tokens, 512)
            attention = flops.self_attention + flops.cross_attention
            entries.append((flops, (flops.total - attention) / 500e12 + attention / 300e12))
        rates = network_rates(entries)
        assert rates == {"linear": pytest.approx(500), "attention": pytest.approx(300)}

    @pytest.mark.parametrize("seconds", [(1.0, 30.0), (1.0, 0.1)])
    def test_are_one_where_the_times_have_no_solution(self, seconds: tuple[float, float]) -> None:
        few, many = Flops(linear=1e12, self_attention=1e12), Flops(linear=2e12, self_attention=4e12)
        rates = network_rates([(few, seconds[0]), (many, seconds[1])])
        assert rates["linear"] == rates["attention"] == pytest.approx(6 / seconds[1])

    def test_are_one_where_there_is_one_size(self) -> None:
        flops = Flops(linear=1e12, self_attention=2e12)
        assert network_rates([(flops, 2.0)]) == {"linear": 1.5, "attention": 1.5}


@pytest.mark.slow
def test_of_the_codec_and_of_the_file_are_measured_here() -> None:
    """Wan's VAE at full size, on 64 x 64 px: some seconds."""
    words = ("scale.height=64", "scale.width=64", "scale.anchor_height=32", "scale.anchor_width=32")
    rates = codec_rates(build(["scale=proxy", "trainer=cpu", *words]), "cpu")
    assert rates.keys() == {"decode", "encode"}
    assert all(0 < rate < 10 for rate in rates.values())
    assert 0.1 < file_rate(256, 448)["file"] < 10_000
