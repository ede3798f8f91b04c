"""A page of a comparison, read as strictly as XML would be, and what it is made of."""

import re
from html.parser import HTMLParser

NAME = re.compile(r'<span class="name">([^<]*(?:<wbr>[^<]*)*)</span>')


VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are nested, and keeps what a test asks for."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text, self.scripts = [], [], [], [], []
        # a name is one piece, as it is when somebody copies it
        self.feed(NAME.sub(lambda found: found[1].replace("<wbr>", ""), text))
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.text).append(data)


def plots_of(text):
    return re.findall(r'<svg [^>]*class="plot".*?</svg>', text, re.DOTALL)


def write_bins(directory, text):
    (directory / "reliability.csv").write_text(f"low,high,confidence,accuracy,count\n{text}")
