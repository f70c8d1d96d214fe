"""Parts of a page that sections are made of: pictures, films, tables, and a slider between two pictures. Strings of HTML, no files read
but films.
"""

import base64
from html import escape
from pathlib import Path

import cv2
import numpy as np

from utils.report import pictures
from utils.types import Array

_PICTURE_WIDTH = 640
_JPEG_QUALITY = 85
_LARGEST_FILM = 8_000_000
"""Bytes of a film that still goes into the page."""


def missing(sentence: str) -> str:
    """What is said in place of a part that cannot be made."""
    return f'<p class="missing">{escape(sentence)}</p>'


def image_tag(image: Array, words: str) -> str:
    """An `img` with its pixels inside; JPEG for pictures, PNG where there is transparency."""
    if image.shape[-1] == 4:
        kind, encoded = "png", cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA))[1]
    else:
        small = pictures.fit_width(image, _PICTURE_WIDTH)
        options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        kind, encoded = "jpeg", cv2.imencode(".jpg", np.ascontiguousarray(small[..., ::-1]), options)[1]
    data = base64.b64encode(encoded.tobytes()).decode()
    return f'<img alt="{escape(words)}" src="data:image/{kind};base64,{data}">'


def picture(image: Array, caption: str) -> str:
    """A figure that is enlarged by a click."""
    return figure(image_tag(image, caption), caption)


def figure(image: str, caption: str) -> str:
    """A picture's tag with what it shows, enlarged by a click."""
    button = f'<button type="button" class="zoom" aria-label="{escape(f"enlarge: {caption}")}">{image}</button>'
    return f"<figure>{button}<figcaption>{escape(caption)}</figcaption></figure>"


def png_file(path: Path, words: str) -> str:
    """A picture that a stage drew, as it is; empty if it is not there."""
    if not path.is_file():
        return ""
    return figure(f'<img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">', words)


def film(path: Path, caption: str) -> str:
    """A silent film that starts by itself and repeats; empty if it is not there or too large for a page."""
    if not path.is_file() or path.stat().st_size > _LARGEST_FILM:
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    video = f'<video controls autoplay muted loop playsinline aria-label="{escape(caption)}" src="data:video/mp4;base64,{data}"></video>'
    return f"<figure>{video}<figcaption>{escape(caption)}</figcaption></figure>"


def slider(before: Array, before_words: str, after: Array, after_words: str) -> str:
    """Two pictures over each other with a handle between them, moved by pointer or arrow keys; side by side on paper and without script.

    Args:
        before: (h, w, 3) uint8, shown on the left.
        before_words: what it is.
        after: (h, w, 3) uint8 of the same view.
        after_words: what it is.
    """
    after = pictures.resized_to(after, before)
    label = f"divide between {before_words} on the left and {after_words} on the right"
    return (
        f'<div class="compare" style="--at:50%">'
        f"<figure>{image_tag(after, after_words)}<figcaption>{escape(after_words)}</figcaption></figure>"
        f'<figure class="upper">{image_tag(before, before_words)}<figcaption>{escape(before_words)}</figcaption></figure>'
        f'<input type="range" min="0" max="100" value="50" aria-label="{escape(label)}"></div>'
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table that scrolls by itself on narrow screens; the first column names the row."""
    header = "".join(f"<th>{escape(h)}</th>" if h else "<td></td>" for h in head)
    lines = ["<tr>" + f'<th scope="row">{escape(r[0])}</th>' + "".join(f"<td>{escape(c)}</td>" for c in r[1:]) + "</tr>" for r in rows]
    content = f"<thead><tr>{header}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll" tabindex="0" role="group" aria-label="table, scrolls sideways"><table>{content}</table></div>'
