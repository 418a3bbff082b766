"""Figures, drawn with matplotlib, as PNG files and as SVG in pages; one file for each kind of figure."""
