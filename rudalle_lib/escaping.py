"""Text of strangers made safe for its target: terminals and logs, Markdown, HTML, YAML, CSV.

Prompts, column names, file names and the messages of other libraries may contain anything. There is
one function per target, and everything that reaches the target passes through it.
"""

from __future__ import annotations

import html
import json
import re

TYPOGRAPHY = str.maketrans({"…": "...", "·": "-", "–": "-", "—": "-", "×": "x", "█": "#"})
"""Replacements for characters of our own texts in encodings that lack them."""

_UNSAFE = re.compile(
    # Control characters but tab and newline, lone surrogates, line and paragraph separators.
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029"
    # Directions and invisible characters; not the joiners that emoji, Persian and Hindi need.
    "\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
_MARKUP = re.compile(r"([\\`*_\[\]#>~$@])")
_BLOCK_START = re.compile(r"^(\d+(?=[.)])|(?=[-+=]))")
_FORMULA = re.compile("'*[=+\\-@\t\r]")


def safe_text(text: str) -> str:
    """Make a text safe for a terminal or a log: what could control it is shown as an escape.

    Control characters (escape sequences, bell, carriage return), direction overrides, invisible
    characters and lone surrogates become `\\x1b`, `\\u202e` and the like. Newlines and tabs stay.
    Safe text is returned unchanged.
    """
    return text if text.isprintable() else _UNSAFE.sub(_escape, text)


def safe_line(text: str) -> str:
    """Make a text safe for one line of a terminal or a log: like `safe_text`, newlines included."""
    return safe_text(text).replace("\n", "\\n").replace("\t", "\\t")


def indented(text: str) -> str:
    """Make a message safe whose later lines must not look like messages of their own."""
    return safe_text(text).replace("\n", "\n  ")


def encodable(text: str, encoding: str) -> str:
    """Replace the characters that an encoding lacks: typography by ASCII, others by escapes."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(TYPOGRAPHY)
        return text.encode(encoding, "backslashreplace").decode(encoding)
    return text


def markdown_text(text: str) -> str:
    """Put a text on one line of Markdown, or into a table's cell, with all markup escaped."""
    line = _one_line(text).replace("&", "&amp;").replace("<", "&lt;")
    line = _MARKUP.sub(r"\\\1", line).replace("|", "&#124;")  # tables know no escaped backslash
    return _BLOCK_START.sub(r"\1\\", line)


def markdown_code(text: str) -> str:
    """Put a text on one line of Markdown, or into a table's cell, as code."""
    line = _one_line(text)
    if line and not re.search(r"[`|\\]", line):
        return f"`{line}`"
    return f"<code>{markdown_text(line)}</code>"  # these three have no escape in a code span


def html_text(text: str) -> str:
    """Escape a text for HTML, as content or as the value of a quoted attribute."""
    return html.escape(safe_text(text))


def yaml_text(text: str) -> str:
    """Quote a text as a YAML scalar on one line, whatever it contains."""
    known = text.encode("utf-8", "replace").decode()  # YAML has no lone surrogates
    quoted = json.dumps(known, ensure_ascii=False)
    # Some viewers take front matter for Markdown.
    plain = (c.isprintable() and c not in "<>&[]`" for c in quoted)
    return "".join(c if ok else f"\\U{ord(c):08x}" for c, ok in zip(quoted, plain, strict=True))


def csv_cell(text: str) -> str:
    """Escape a cell that a spreadsheet would run as a formula, with a quote in front of it.

    That is the advice of OWASP (https://owasp.org/www-community/attacks/CSV_Injection). A text that
    begins with quotes in front of such a character gets one more, so `csv_text` is the inverse.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def csv_text(cell: str) -> str:
    """Return the text of a cell that `csv_cell` has escaped; other cells are returned unchanged."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _one_line(text: str) -> str:
    return safe_text(" ".join(text.split()))
