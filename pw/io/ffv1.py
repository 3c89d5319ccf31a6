"""The checksums of FFV1 (RFC 9043)."""

from __future__ import annotations

import zlib

# A byte with its bits in reverse: the CRC of FFV1 takes the highest bit first, zlib's the lowest.
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def has_right_checksums(packet: bytes) -> bool:
    """Whether each slice of an FFV1 packet (section 4.8) ends in its size, a status and the right CRC-32.

    FFmpeg only logs a wrong one, and shows the slice of the picture before.
    """
    end = len(packet)
    while end >= 8:
        start = end - 8 - int.from_bytes(packet[end - 8 : end - 5])
        if start < 0 or zlib.crc32(packet[start:end].translate(REVERSED_BITS), 0xFFFFFFFF) != 0xFFFFFFFF:
            return False
        end = start
    return end == 0
