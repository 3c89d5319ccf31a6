"""`pw compare a=… b=…`: two runs, or two folders of videos from any system, paired.

A run is named by the signature of its training or of its clips (`outputs/train`, `outputs/videos`), or by the first
digits of one; several, a=1c2d,9f00 b=…, are the seeds of one arm. Written to `outputs/compare/<a>_<b>/`:
comparison.json, comparison.md, contact_sheet.png.

With one seed the unit is the prompt (`benchmarks.stats.paired`), and the result is about these two sets of videos.
With several seeds the unit is the seed (`benchmarks.stats.comparison`), as in an ablation's table; only then has a
metric of the whole set an interval.
"""

from __future__ import annotations

from experiments.engine.compare.compare_options import CompareOptions
from experiments.engine.compare.comparison_report import rendered, write
from experiments.engine.compare.run_comparison import compare_sides
from experiments.engine.terminal import console
from pw.io.arguments import Command, ConfigError


def run(options: CompareOptions) -> int:
    """Exit status: 0 compared. Raises ConfigError for what cannot be compared."""
    try:
        comparison = compare_sides(options)
        out = options.out or options.outputs / "compare" / f"{comparison.a.name}_{comparison.b.name}"
        write(comparison, out)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    terminal = console()
    for part in rendered(comparison, terminal.width):
        terminal.print(part)
    terminal.print(f"\n{out}/comparison.{{json,md}}, contact_sheet.png", soft_wrap=True)
    return 0


main = Command(CompareOptions, run, resumes="what was measured is kept, the same command goes on with the rest")
