"""Every document: a sentence has at most 25 words, and a line of prose at most 120 characters.

A sentence ends in a paragraph, list item, heading or table cell. Code counts as one word; the target of a link does not count.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.test_links_and_commands import PAGES

MAX_WORDS = 25
MAX_LINE = 120
FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
TABLE_ROW = re.compile(r"^ *\|(.*)\|$", re.MULTILINE)
# What begins a block: a heading, or an item of a list. A heading ends one too.
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
ITEM = re.compile(r"^ *(?:[-*]|\d+\.) ", re.MULTILINE)


def long_sentences(text: str) -> list[str]:
    text = FENCED.sub("", text)
    text = re.sub(r"`[^`]+`", "code", text)
    text = re.sub(r"\]\([^)]+\)", "]", text)
    text = TABLE_ROW.sub(lambda row: "\n" + row[1].replace("|", "\n\n") + "\n", text)
    text = ITEM.sub("\n\n", HEADING.sub(r"\n\1\n", text))
    blocks = [" ".join(block.split()) for block in re.split(r"\n\s*\n", text)]
    sentences = [sentence for block in blocks for sentence in re.split(r"(?<=[.!?])[*)\"]* ", block)]
    return [sentence for sentence in sentences if len(re.findall(r"\S*\w\S*", sentence)) > MAX_WORDS]


@pytest.mark.parametrize(
    "text",
    [
        "{}.",
        "Short. {}! Short.",
        "- {}",
        "- Short.\n- {}",
        "| cell | {} |\n|---|---|",
        "# {}",
        "**Bold.** {}\n\nShort.",
    ],
)
def test_a_long_sentence_is_found(text: str) -> None:
    assert long_sentences(text.format("word `some code` " * 12 + "end")) == []
    [found] = long_sentences(text.format("word [some link](https://example.com) " * 9))
    assert found.startswith("word [some link]")


@pytest.mark.parametrize(
    "text", ["# {}\n{}", "{}\n\n{}", "| {} | {} |", "- {}\n- {}", "{}. {}", "**{}.** {}", "```\n{} {}\n```"]
)
def test_short_sentences_are_not_joined(text: str) -> None:
    assert long_sentences(text.format("word " * 19 + "end", "word " * 19 + "end")) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    assert long_sentences(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short(page: Path) -> None:
    lines = TABLE_ROW.sub("", FENCED.sub("", page.read_text())).splitlines()
    assert [line for line in lines if len(line) > MAX_LINE] == []
