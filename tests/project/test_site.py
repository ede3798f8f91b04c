"""What checks the documentation site finds what it is for."""

import importlib.util
from pathlib import Path

SITE = Path(__file__).parents[2] / "docs" / "site"


def load(name):
    spec = importlib.util.spec_from_file_location(name, SITE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_broken_links_and_what_is_loaded_from_elsewhere_are_found(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "index.html").write_text('<h1 id="top">B</h1><a href="../a.html">back</a>')
    (tmp_path / "a.html").write_text(
        '<a href="b/#top">right</a> <a href="b/#none">no place</a> <a href="c.html">no page</a>'
        '<a href="https://example.org">for a person</a> <img src="https://example.org/x.png">'
        '<a name="here"></a><a href="#here">right</a><a href="#there">no place</a>'
    )
    assert list(load("check").problems(tmp_path)) == [
        "a.html: there is no place b/#none",
        "a.html: there is no c.html",
        "a.html loads https://example.org/x.png",
        "a.html: there is no place #there",
    ]


def test_a_site_without_a_page_is_no_site(tmp_path, capsys):
    assert load("check").main(tmp_path) == 1
    assert capsys.readouterr().out == "0 pages, 0 broken links\n"


def test_a_bar_is_one_in_a_cell_and_nowhere_else():
    html = r"<td><code>a \| b</code></td><pre>grep 'a\|b'</pre>"
    assert (
        load("hooks").on_page_content(html) == r"<td><code>a | b</code></td><pre>grep 'a\|b'</pre>"
    )
