"""Check a built site: every link leads somewhere, and no page needs the network.

python docs/site/check.py build/site
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src")}
"""What a browser fetches by itself; a link is followed by a person."""

NOT_LOADED = {"canonical", "next", "prev", "alternate"}


class Page(HTMLParser):
    """The places of a page that can be linked to, and its links: whether loaded, and the target."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[tuple[bool, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the anchors and links of a tag."""
        given = {key: value for key, value in attrs if value is not None}
        self.anchors |= {given[key] for key in ("id", "name") if key in given}
        for key in ("href", "src"):
            if key in given:
                loaded = (tag, key) in LOADED and given.get("rel") not in NOT_LOADED
                self.links.append((loaded, given[key]))


def problems(root: Path) -> Iterator[str]:
    """Yield the links of a site that lead nowhere, and what its pages load from elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in root.rglob("*.html")}
    for path, page in sorted(pages.items()):
        name = path.relative_to(root)
        if name.name == "404.html":
            continue  # its links are relative to wherever the site is published
        for loaded, link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if loaded and parts.scheme != "data":
                    yield f"{name} loads {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{name}: there is no {link}"
            elif parts.fragment and target in pages:
                anchor = unquote(parts.fragment)
                if anchor not in pages[target].anchors and not anchor.startswith("__"):
                    yield f"{name}: there is no place {link}"


def main(root: Path) -> int:
    """Print the problems; return the exit status."""
    found = list(problems(root.resolve()))
    for line in found:
        print(line)
    count = len(list(root.rglob("*.html")))
    print(f"{count} pages, {len(found)} broken links")
    return 1 if found or not count else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
