"""`pw ablations`: every ablation, with what it asks, its claim and the result."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.engine.ablation import load, names
from pw.io.arguments import Command

LINE = 110  # characters of a paragraph, at most: longer lines are hard to read


@dataclass(frozen=True)
class AblationsOptions:
    """There are none: all ablations are listed."""


def run(_: AblationsOptions) -> int:
    """Print every ablation: what it asks, its arms, what it claims and the result; exit status 0."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for name in names():
        ablation, stated = load(name)
        arms = ", ".join(ablation.arms)
        if ablation.across:
            arms += f"; each at {ablation.across[0].rpartition('.')[2]} {', '.join(map(str, ablation.across[1]))}"
        console.print(Text.assemble((name, "bold"), "  ", stated.title))
        # paragraphs below each other, not columns: a verdict of sixty words would be as wide as one of them
        paragraphs = Table.grid(padding=(0, 2, 0, 0))
        texts = {"arms": arms, "claim": stated.claim, "refuted": stated.refuted, "verdict": stated.verdict}
        for label, text in texts.items():
            if text:
                paragraphs.add_row(Text(label, style="dim"), Text(text, overflow="fold"))
        console.print(Padding(paragraphs, (0, 0, 1, 2)), width=min(console.width, LINE))
    return 0


main = Command(AblationsOptions, run)
