"""What runs came to, side by side: rows, statistics, tables, plots and a page."""
