"""
The pieces of a report that opens in a browser: one file, no script, nothing from outside.

Functions take plain text, which may be a stranger's, and return markup in which it is escaped. Only `section`, `folded`
and `document` take markup.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import Any

from art_aft.experiments.reports.style import STYLE
from art_aft.runtime.text import printable

# No browser may load or run anything for the page, whatever it contains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header class="verdict $tone">
<p class="kicker">$title</p>
<h1>$headline</h1>
$sentences
</header>
$sections
</main>
</body>
</html>
""")


@dataclass(frozen=True)
class Verdict:
    """
    What a report says first.

    :param tone: "bad", "good" or "unsure", for the colour.
    :param headline: A few words.
    :param sentences: What it means and what to do, for a reader who reads nothing else.
    """

    tone: str
    headline: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """
    Where a report comes from.

    :param command: The command that makes it again.
    :param python: The same as lines of Python.
    :param inputs: What went in, such as the model's file and the settings, by what a reader calls it.
    :param classes: Names of labels, as far as they are known.
    """

    command: str
    python: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    classes: Mapping[int, str] = field(default_factory=dict)

    def label(self, number: int) -> str:
        """
        Return how a text names a label.

        >>> Source("", "", classes={3: "stop"}).label(3)
        'label 3 (“stop”)'
        """
        name = self.classes.get(number)
        return f"label {number}" if name in (None, str(number)) else f"label {number} (“{name}”)"


def escaped(value: Any) -> str:
    r"""
    Return a value as text that a page shows and does not obey.

    >>> escaped("<b>\x1b")
    '&lt;b&gt;\\x1b'

    :param value: Anything.
    """
    return html.escape(printable(str(value)))


def document(title: str, verdict: Verdict, *sections: str) -> str:
    """
    Return a whole page.

    :param title: What kind of report it is.
    :param verdict: What stands at the top.
    :param sections: Markup.
    """
    return _PAGE.substitute(
        policy=_POLICY,
        title=escaped(title),
        style=STYLE,
        tone=verdict.tone,
        headline=escaped(verdict.headline),
        sentences=paragraphs(*verdict.sentences),
        sections="\n".join(sections),
    )


def section(title: str, *parts: str) -> str:
    """Return a section; the parts are markup."""
    return f"<section>\n<h2>{escaped(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def folded(title: str, *parts: str) -> str:
    """Return what only some readers want, behind its title; the parts are markup."""
    return f"<details>\n<summary>{escaped(title)}</summary>\n" + "\n".join(parts) + "\n</details>"


def paragraphs(*sentences: str) -> str:
    """Return a paragraph for each text."""
    return "\n".join(f"<p>{escaped(each)}</p>" for each in sentences)


def heading(title: str) -> str:
    """Return a heading within a section."""
    return f"<h3>{escaped(title)}</h3>"


def listing(items: Sequence[str]) -> str:
    """Return a list of points."""
    return "<ul>\n" + "\n".join(f"<li>{escaped(each)}</li>" for each in items) + "\n</ul>"


def code(text: str) -> str:
    """Return lines to be copied."""
    return f"<pre><code>{escaped(text)}</code></pre>"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table, whose first column names the rows. On a narrow screen it scrolls by itself."""
    texts = [not all(_is_number(row[column]) for row in rows) for column in range(len(head))]
    kinds = [' class="text"' if text else "" for text in texts]
    top = "".join(f'<th scope="col"{kind}>{escaped(each)}</th>' for kind, each in zip(kinds, head, strict=True))
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td{kind}>{escaped(each)}</td>" for kind, each in zip(kinds[1:], rest, strict=True))
        lines.append(f'<tr><th scope="row">{escaped(first)}</th>{cells}</tr>')
    # Focusable, so that it can be scrolled with the keyboard.
    return f'<div class="wide" tabindex="0"><table><tr>{top}</tr>\n' + "\n".join(lines) + "\n</table></div>"


def _is_number(value: Any) -> bool:
    """Return whether a cell begins with a number, such as "98.0 ±0.2", or is empty."""
    try:
        float(str(value).partition(" ")[0] or "0")
    except ValueError:
        return False
    return True


def facts(values: Mapping[str, Any]) -> str:
    """Return names and values, such as settings. Values that contain others are shown as Python writes them."""
    lines = [f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in values.items()]
    return "<dl>\n" + "\n".join(lines) + "\n</dl>"


def classes(source: Source) -> list[str]:
    """Return the names of the labels behind a title, as markup, where they are known."""
    if not source.classes:
        return []
    return [folded("Names of the labels", table(["label", "class folder"], sorted(source.classes.items())))]


def ending(report: Mapping[str, Any], source: Source, settings: Mapping[str, Any] | None = None) -> list[str]:
    """Return what stands at the end of every page, as markup."""
    versions = {**report["versions"], "machine": report["machine"], "device": report["device"]}
    return [
        section("Settings", facts(source.inputs), *([folded("All settings", facts(settings))] if settings else [])),
        section("Versions", facts({**versions, "threads": report["threads"]})),
        section(
            "Run it again",
            paragraphs(
                "The same command, in the same folder, on the same machine and with the same versions, gives the "
                "same result. An existing result may have to be moved first."
            ),
            code(source.command),
            paragraphs("The same in Python:"),
            code(source.python),
        ),
    ]
