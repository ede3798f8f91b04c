"""Compare runs: rows, statistics, tables, plots and a page."""
