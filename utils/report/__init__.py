"""What a run shows to people: `report.html`, charts, pictures of clouds, depth and residuals.

Made from files that stages left on disk; nothing is computed anew. One self-contained page, no script from elsewhere.
May import: `utils.registration`, `utils.splatting`, `utils.scene` and below.
Start: `html` (the page), `alignment_report` (what an alignment leaves).
"""
