"""
Write measured tables and numbers on the pages from the JSON files in examples/results.

`python docs/measured.py` writes tables between `<!-- rows: NAME -->` and `<!-- end of rows -->`, and single numbers
between `<!-- row: QUESTION -->` and `<!-- end -->`; `--check` only says whether they are up to date, as a test does.
The tables are in `docs/measuring/`; `measuring/inline.py` says what a question is.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from measuring import comparisons, detectors, inline, margins, methods, speed, zoo

DOCS = Path(__file__).resolve().parent
TABLES = {**methods.TABLES, **detectors.TABLES, **comparisons.TABLES, **speed.TABLES, **zoo.TABLES, **margins.TABLES}
MARKED = re.compile(r"(<!-- rows: (\w+) -->\n).*?(<!-- end of rows -->)", re.DOTALL)


def written(page: str) -> str:
    """Return a page with its tables and numbers made anew."""
    return inline.filled(MARKED.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], page))


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page is out of date")
    options = parser.parse_args()
    stale = []
    for path in sorted([*DOCS.glob("*.md"), *DOCS.glob("*/*.md")]):
        page = path.read_text(encoding="utf-8")
        if written(page) != page:
            stale.append(path.name)
            if not options.check:
                path.write_text(written(page), encoding="utf-8")
    print(", ".join(stale) or "nothing", "out of date" if options.check else "written")
    sys.exit(1 if stale and options.check else 0)


if __name__ == "__main__":
    main()
