"""What the paper's text says of its tables, held against them; `printed` is its wording."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.paper import COLUMNS
from benchmarks.paper.check import Check, Interval, Tables, ends, listed, rounding, size


def checks(tables: Tables) -> Iterator[Check]:
    """All of this module."""
    for find in (speed_ups, durations, bests, orders, counts):
        yield from find(tables)


def speed_ups(tables: Tables) -> Iterator[Check]:
    """ "accelerating the generative sampling of native 2K/4K videos by over 10×": against the base model, Table 1."""
    table = tables["table_1"]
    for of, to, name in (("wan2_2_5b_2k", "pixelwizard_2k", "2K"), ("wan2_2_5b_4k", "pixelwizard_4k", "4K")):
        slow, fast = table.row(of), table.row(to)
        a, b = rounding(slow.printed["Latency"]), rounding(fast.printed["Latency"])
        interval = Interval(a.low / b.high, a.high / b.low)
        yield Check(
            kind="claim",
            tables=("table_1",),
            place="abstract; sec. 1, last paragraph",
            row=f"{fast.label} to {slow.label}",
            column=f"speed-up at {name}",
            printed="over 10×",
            recomputed=f"{interval.low:.2f} to {interval.high:.2f}",
            how=f"{slow.printed['Latency']} s / {fast.printed['Latency']} s, the base model at the same size",
            adds_up=interval.low > 10,
            possible=interval,
        )


def durations(tables: Tables) -> Iterator[Check]:
    """ "comparable at approximately 5 seconds" (sec. 8.2): frames over frames per second, to the nearest second."""
    about = rounding("5")
    for row in tables["table_1"].rows:
        frames, fps = size(row.printed["Resolution (T×H×W)"])[0], row.values["Playback FPS"]
        seconds = Interval(frames / fps, frames / fps)
        yield Check(
            kind="claim",
            tables=("table_1",),
            place="sec. 8.2, paragraph 2",
            row=f"{row.label} ({row.source})",
            column="playback duration",
            printed="approximately 5 seconds",
            recomputed=f"{seconds.low:.2f}",
            how=f"{frames} frames at {fps:g} per second; 4.5 to 5.5 s would be 5 to the nearest second",
            adds_up=about.meets(seconds),
            possible=seconds,
        )


_BESTS = (
    (
        "table_1",
        ("Avg.",),
        2,
        "sec. 4.2, after Table 3",
        "achieving the highest average scores at both 2K and 4K resolutions",
    ),
    (
        "table_2",
        ("mHD-MSE", "mHD-LPIPS", "Tech.", "Aesth."),
        1,
        "sec. 4.2, after Table 3",
        "consistently achieves the best performance across all metrics",
    ),
)
# PixelWizard's rows; two of them lead where the text says "both".
_OURS = ("pixelwizard_2k", "pixelwizard_4k")


def bests(tables: Tables) -> Iterator[Check]:
    """Claims of being best: of Table 1's averages both, of Table 2's columns one of PixelWizard's two rows."""
    for name, columns, need, place, claim in _BESTS:
        rows = tables[name].rows
        for column in columns:
            sign = 1 if COLUMNS[column].direction == "higher" else -1
            ranked = sorted(rows, key=lambda row: -sign * row.values[column])
            leading = ranked[:need]
            yield Check(
                kind="claim",
                tables=(name,),
                place=place,
                row="PixelWizard",
                column=column,
                printed=claim,
                recomputed=listed([f"{row.label} {row.printed[column]}" for row in leading]),
                how=f"the best of {len(rows)} rows" if need == 1 else f"the best {need} of {len(rows)} rows",
                adds_up=all(row.arm in _OURS for row in leading),
            )


_ORDERS = (
    ("table_4", "add", "alpha_zero", "sec. 4.3", "element-wise addition (w/o AGI) is suboptimal"),
    (
        "table_4",
        "alpha_zero",
        "gated",
        "sec. 4.3",
        "Enabling the full AGHS with adaptive gating further improves performance",
    ),
    ("table_9_3", "baseline", "original", "sec. 9.5", "yields consistent improvements across all metrics"),
    ("table_9_3", "original", "exponential", "sec. 9.5", "yields further gains across all metrics"),
    ("table_9_3", "exponential", "full", "sec. 9.5", "achieves the best overall results"),
)


def orders(tables: Tables) -> Iterator[Check]:
    """Claims that a row is better than the one before it, in every metric."""
    for name, before, after, place, claim in _ORDERS:
        table = tables[name]
        a, b = table.row(before), table.row(after)
        worse = [
            column
            for column, direction in table.quality().items()
            if (b.values[column] - a.values[column]) * (1 if direction == "higher" else -1) <= 0
        ]
        steps = [f"{c} {a.printed[c]} → {b.printed[c]}" for c in (worse or table.quality())]
        yield Check(
            kind="claim",
            tables=(name,),
            place=place,
            row=f"{a.label} → {b.label}",
            column=listed(worse or list(table.quality())),
            printed=claim,
            recomputed=", ".join(steps),
            how="every metric strictly better" if not worse else f"not better: {', '.join(worse)}",
            adds_up=not worse,
        )


def counts(tables: Tables) -> Iterator[Check]:
    """Numbers that the text derives: the anchor's tokens (sec. 9.5), two stages of 5B parameters (Table 8.2)."""
    width, height = 448, 256
    latent, grid = (width // 16, height // 16), (width // 32, height // 32)
    recomputed = f"{latent[0]}×{latent[1]}, {grid[0]}×{grid[1]}, {grid[0] * grid[1]}"
    printed = "28×16, 14×8, 112"
    yield Check(
        kind="claim",
        tables=(),
        place="sec. 9.5, first paragraph",
        row="anchor of 448×256",
        column="latent, token grid, tokens",
        printed=printed,
        recomputed=recomputed,
        how="the VAE compresses 16×, a patch 2×",
        adds_up=printed == recomputed,
    )
    row = tables["table_8_2"].row("pixelwizard_4k")
    stages = Interval(2 * rounding("5").low, 2 * rounding("5").high)
    yield Check(
        kind="claim",
        tables=("table_8_2",),
        place=row.source,
        row=row.label,
        column="Params.",
        printed=row.printed["Params."],
        recomputed=ends(stages, "10"),
        how="two stages (sec. 9.3), each a Wan2.2-TI2V-5B (sec. 4.1)",
        adds_up=stages.meets(rounding(row.printed["Params."], "B")),
        possible=stages,
    )
