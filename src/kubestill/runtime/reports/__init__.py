"""Self-contained HTML reports with inline SVG plots, and their short Markdown fallbacks."""
