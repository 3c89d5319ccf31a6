"""An ablation as one zip file: `pw share` writes it, `pw open` shows it, `pw adopt` takes its results over."""
