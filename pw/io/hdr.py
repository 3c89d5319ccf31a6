"""Tone-maps HDR pictures (PQ and HLG, as tagged in the file) to SDR.

The peak of a PQ clip, and all above, becomes white. The
peak is in the static metadata of the first picture: MaxCLL of CTA-861.3 or the mastering display's luminance of
SMPTE ST 2086, the lower if both; else 1000 cd/m2, as for HLG. At 1000 the reference white of 203 cd/m2 (ITU-R BT.2408)
becomes 230 of 255, and light below 88 cd/m2 is unchanged:

    light     PQ: the EOTF of ST 2084. HLG: inverse OETF and OOTF of ITU-R BT.2100, 1000 cd/m2, system gamma 1.2
    roll-off  EETF of ITU-R BT.2390, 5.4.1, on each of R, G, B: from the clip's peak to one of 203 cd/m2
    colours   BT.2020 to BT.709 primaries in linear light, colours outside are clipped
    signal    the inverse of BT.1886: (light / 203)^(1 / 2.4)
"""

from __future__ import annotations

import functools
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Code points of ITU-T H.273: transfer characteristics, matrix coefficients and primaries, full range (FFmpeg's 2).
PQ, HLG, BT2020, BT709, FULL_RANGE = 16, 18, 9, 1, 2
M1, M2, C1, C2, C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128  # of PQ, SMPTE ST 2084
WHITE = 203.0  # cd/m2: reference white of BT.2408
PEAK = 1000.0  # cd/m2: nominal peak of HLG, and of nearly all PQ masters
PEAKS = 400.0, 10_000.0  # cd/m2: limits of a plausible peak: no HDR is mastered on less, PQ ends at 10 000
BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
# ITU-R BT.2087, with its rows summing to 1, so that greys stay grey
BT2020_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008350], [-0.018151, -0.100579, 1.118730]], np.float32
)
LEVELS = 1 << 14  # entries of the tables over light; the index is its square root, for precision in the shadows
BAND = 1 << 16  # pixels tone-mapped at a time: they fit in the cache


def peak_of(picture: Any) -> float:
    """The luminance that becomes white, cd/m2; 0 for SDR."""
    if picture.color_trc != PQ:
        return PEAK if picture.color_trc == HLG else 0.0
    luminances = []
    if level := picture.side_data.get("CONTENT_LIGHT_LEVEL"):
        luminances.append(float(struct.unpack_from("=I", bytes(level))[0]))  # AVContentLightMetadata.MaxCLL
    if display := picture.side_data.get("MASTERING_DISPLAY_METADATA"):
        # AVMasteringDisplayMetadata: max_luminance is its tenth fraction, has_luminance its last field
        numerator, denominator, has_luminance = struct.unpack_from("=2i4xi", bytes(display), 72)
        luminances.append(numerator / denominator if has_luminance and denominator else 0.0)
    known_peaks = [peak for peak in luminances if peak > 0]
    return float(round(np.clip(min(known_peaks), *PEAKS))) if known_peaks else PEAK


def tone_map(picture: Any, options: dict[str, Any], peak: float) -> NDArray[np.uint8]:
    """An HDR picture as SDR, uint8 `[H, W, 3]`."""
    matrix = picture.colorspace if picture.colorspace in (BT709, BT2020) else BT2020
    codes = picture.reformat(format="gbrp16le", src_colorspace=matrix, **options).to_ndarray()
    # swscale shifts bits, it does not rescale: 940 of 64..940 becomes 255/256 of 2^16, 1023 of 0..1023 1023/1024
    full = picture.color_range == FULL_RANGE or picture.format.is_rgb
    bits = picture.format.components[0].bits if full else 8
    light_table, (roll_off, tone) = _light_table(picture.color_trc, bits, peak), _tables()
    pixels, result = codes.reshape(-1, 3), np.empty((codes.shape[0] * codes.shape[1], 3), np.uint8)
    for start in range(0, len(pixels), BAND):
        light = light_table[pixels[start : start + BAND]]
        if picture.color_trc == HLG:  # BT.2100: the OOTF raises luminance to the power of 1.2, hues are kept
            light *= np.power(light @ BT2020_LUMA, np.float32(0.2))[:, None]
            light = roll_off[_level(light)]
        if picture.color_primaries != BT709:
            light = light @ BT2020_TO_BT709.T
        result[start : start + BAND] = tone[_level(light)]
    return result.reshape(codes.shape)


def _level(light: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Light, clipped in place to [0, 1] -> index into the tables over light."""
    np.clip(light, 0, 1, out=light)
    np.sqrt(light, out=light)
    light *= LEVELS - 1
    light += 0.5
    return light.astype(np.uint16)


@functools.lru_cache(maxsize=16)
def _light_table(transfer: int, bits: int, peak: float) -> NDArray[np.float32]:
    """Light of every 16-bit code, PQ: after the roll-off, as a share of the SDR peak; HLG: scene light in [0, 1]."""
    signal = np.minimum(np.arange(1 << 16) / (65536 * (1 - 2.0**-bits)), 1)
    if transfer == PQ:
        return _roll_off(pq_to_light(signal), peak).astype(np.float32)
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)


@functools.cache
def _tables() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """(Share of `PEAK` -> share of the SDR peak, share of the SDR peak -> 8-bit signal by BT.1886 inverted)."""
    root = np.arange(LEVELS) / (LEVELS - 1)
    return _roll_off(PEAK * root**2, PEAK).astype(np.float32), np.rint(255 * root ** (2 / 2.4)).astype(np.uint8)


def pq_to_light(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """EOTF of SMPTE ST 2084: signal in [0, 1] -> cd/m2 in [0, 10000]."""
    root = np.power(signal, 1 / M2)
    return 10_000 * np.power(np.maximum(root - C1, 0) / (C2 - C3 * root), 1 / M1)


def light_to_pq(light: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Inverse EOTF of SMPTE ST 2084: cd/m2 in [0, 10000] -> signal in [0, 1]."""
    power = np.power(np.asarray(light) / 10_000, M1)
    return np.power((C1 + C2 * power) / (1 + C3 * power), M2)


def _roll_off(light: NDArray[np.float64], peak: float) -> NDArray[np.float64]:
    """EETF of ITU-R BT.2390, 5.4.1, black at 0: cd/m2 -> share of `WHITE` in [0, 1]; a spline above the knee."""
    top = light_to_pq(peak)
    e, white = np.minimum(light_to_pq(light) / top, 1), light_to_pq(WHITE) / top
    knee = 1.5 * white - 0.5
    t = (e - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * white
    return pq_to_light(np.where(e < knee, e, spline) * top) / WHITE
