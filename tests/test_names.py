"""Names of data sets, classes and files in the terminal and in Markdown: text, and nothing else."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_essl.common import markdown, one_line, table


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("frgfm/imagenette", "frgfm/imagenette"),
        ("photo_patches-2", "photo_patches-2"),
        ("a\x1b[31mred\nb", r"a?\[31mred b"),
        ("<script>x</script>", "&lt;script&gt;x&lt;/script&gt;"),
        ("[a](http://x)", r"\[a\](http://x)"),
        ("a|b`c*", r"a\|b\`c\*"),
    ],
)
def test_markdown_by_hand(name, shown):
    assert markdown(name) == shown


@given(st.text())
def test_any_text_is_one_printable_line(text):
    shown = one_line(text)
    assert shown.isprintable() and shown


@given(st.text(min_size=1))
def test_markdown_gives_the_text_back_and_no_tag(text):
    shown = markdown(text)
    assert "<" not in shown and not re.search(r"(?<!\\)(\\\\)*[`*\[\]|]", shown)
    assert html.unescape(re.sub(r"\\([\\`*\[\]|])", r"\1", shown)) == one_line(text)


def test_a_table_stays_a_table():
    assert table(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"
