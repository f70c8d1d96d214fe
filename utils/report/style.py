"""The page around the report: markup; its style and its few lines of script lie beside this module and go into the page."""

import base64
import hashlib
from pathlib import Path

_FOLDER = Path(__file__).parent
STYLE = (_FOLDER / "page.css").read_text(encoding="utf-8")
SCRIPT = (_FOLDER / "page.js").read_text(encoding="utf-8")
SCRIPT_SOURCE = f"'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
"""What a content security policy allows so that this script runs and no other."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
{style}</style></head><body><header><h1>{title}</h1><p>{subtitle}</p></header><main>{body}</main><script>{script}</script></body></html>
"""
