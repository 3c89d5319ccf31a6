"""`pw ablations`: every ablation, with what it asks, its claim and the result."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from experiments.engine.ablation import load, names
from pw.io.arguments import Command, ConfigError

LINE = 110  # characters of a paragraph, at most: longer lines are hard to read


@dataclass(frozen=True)
class AblationsOptions:
    """There are none: all ablations are listed."""


def run(_: AblationsOptions) -> int:
    """Print every ablation: what it asks, its arms, what it claims and the result.

    Exit status: 0, or 1 where a file cannot be read.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    unreadable = []
    for name in names():
        try:
            ablation, stated = load(name)
        except ConfigError as error:  # one of the user's, who wants to see the others
            unreadable.append(error)
            continue
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
    for error in unreadable:
        print(f"error: {error}", file=sys.stderr)
    return 1 if unreadable else 0


main = Command(AblationsOptions, run)
