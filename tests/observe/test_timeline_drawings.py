"""Timelines as SVG, HTML and text: golden files, no overlaps, hostile names stay text.

``UPDATE_GOLDEN=1 pytest tests/observe/test_timeline_drawings.py`` writes the golden files anew: look at them then.
"""

import os
import random
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.errors import InputError
from weft.observe.lettering import text_width
from weft.observe.timeline import LimitCost, Piece, Span, Timeline
from weft.observe.timeline_colours import DARK, LIGHT
from weft.observe.timeline_html import fragment, page
from weft.observe.timeline_svg import svg
from weft.observe.timeline_text import text

GOLDEN = Path(__file__).parent / "golden"
SVG = "{http://www.w3.org/2000/svg}"


def call(name, asked, ended, *, parent="", waits=0.0, limits=(), step=None, **fields):
    start = asked + waits
    pieces = tuple(
        p for p in (Piece("waiting", asked, start), Piece("running", start, ended)) if p.seconds > 0
    )
    fields = {"outcome": "ok", "pieces": pieces, **fields}
    return Span(name, step or name, parent, asked, start, ended, limits=limits, **fields)


def run(*spans, seconds, workflow="work", status="finished", **fields):
    return Timeline("r", workflow, status, 0.0, seconds, spans, **fields)


RESEARCH = run(
    call("1", 0.0, 1.1, step="plan"),
    call("2", 0.0, 0.004, step="load_cache", reused="cached", pieces=()),
    call("b", 1.1, 7.3, step="parallel"),
    call("3", 1.1, 3.4, step="search_web", parent="b"),
    call(
        "4", 1.1, 4.2, step="search_papers_in_all_the_archives_we_know_of", parent="b", attempts=2,
        pieces=(Piece("failed", 1.1, 2.0), Piece("backoff", 2.0, 2.6), Piece("running", 2.6, 4.2)),
    ),
    call("5", 1.1, 7.3, step="search_news", parent="b", waits=2.3, limits=("openai",)),
    call(
        "6", 1.1, 5.0, step="search_patents", parent="b", waits=3.1, limits=("openai",), outcome="failed",
        error="ValueError: HTTP 403 <script>alert(1)</script>",
    ),
    call("7", 7.31, 7.9, step="rank"),
    call("8", 7.9, 11.6, step="write", pieces=(Piece("asking", 7.9, 8.4), Piece("running", 8.4, 11.6))),
    call("9", 7.9, 8.3, step="check", outcome="cancelled", error="not needed"),
    seconds=11.7,
    workflow="research",
)  # fmt: skip

NIGHTLY = run(
    call("1", 1.0, 41.0, step="load"),
    call(
        "2", 42.0, 191.0, step="fetch", attempts=3,
        pieces=(Piece("earlier", 42.0, 142.0), Piece("running", 142.0, 191.0)),
    ),
    call("3", 90_001.0, 90_061.0, step="write", outcome="timed_out", error="TimeoutError: late"),
    seconds=90_061.0,
    workflow="nightly",
    status="failed",
    pauses=((191.0, 90_001.0),),
    is_recorded=True,
)  # fmt: skip


def many(count, slots=16, steps=("fetch", "summarise"), *, seed=1):
    """So many calls behind a limit."""
    chance = random.Random(seed)
    free = [1.0] * slots
    spans = [call("plan", 0.0, 1.0), call("map", 1.0, 1.0)]
    for number in range(count - 2):
        slot = free.index(min(free))
        ended = free[slot] + round(chance.lognormvariate(0, 0.6), 3)
        failed = {"outcome": "failed", "error": f"ValueError: page {number % 3}"} if number % 50 == 7 else {}
        spans.append(
            call(
                f"c{number}", 1.0, ended, parent="map", waits=free[slot] - 1.0, step=steps[number % len(steps)],
                limits=("openai",) if free[slot] > 1.0 else (), **failed,
            )
        )  # fmt: skip
        free[slot] = ended
    end = max(free)
    spans[1] = call("map", 1.0, end, step="map(summarise)")
    return run(*spans, seconds=end + 0.3, workflow="digest")


LANES = many(60, 4)
DRAWN = {
    "research.svg": RESEARCH.svg,
    "research.html": RESEARCH.html,
    "research.txt": lambda: RESEARCH.text() + "\n",
    "research-colours.txt": lambda: RESEARCH.text(width=70, colour=True) + "\n",
    "nightly.svg": lambda: NIGHTLY.svg(theme="dark", width=600),
    "nightly.txt": lambda: NIGHTLY.text(width=80) + "\n",
    "lanes.svg": lambda: LANES.svg(theme="light"),
    "steps.txt": lambda: many(2_000).text(width=120) + "\n",
}


@pytest.mark.parametrize("name", DRAWN)
def test_drawings_are_as_they_were_found_good(name, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    drawn = DRAWN[name]()
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(drawn.encode())
    assert drawn == path.read_text(encoding="utf-8")


# What is in them


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


HTML_TAGS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "div",
        "b",
        "span",
        "ul",
        "li",
        "p",
        "h2",
        "i",
        "u",
        "em",
    ),
    *("small", "svg", "path"),
}
SVG_TAGS = {"svg", "title", "style", "rect", "g", "text", "path"}
ALLOWED = {
    *(
        "lang",
        "charset",
        "name",
        "content",
        "class",
        "style",
        "title",
        "data-tip",
        "viewbox",
        "preserveaspectratio",
    ),
    *("aria-hidden", "d"),
}
NAMES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            *("</style><script>alert(1)</script>", '"onmouseover="alert(1)', "' onload='x", "]]>", "&lt;b&gt;"),
            *("</title>", "-->", "url(http://x.test/)", "@import 'http://x.test'", "a\nb", "\x1b[31mred"),
            *("\u202eabc", "\ud800"),
            *("語" * 60, "x" * 400, "", "e\u0301" * 30, "👩‍👩‍👧" * 9, "\x00", "\ufffe", "javascript:alert(1)", "%s{}"),
        ]
    ),
)  # fmt: skip


@st.composite
def hostile(draw):
    names = draw(st.lists(NAMES, min_size=1, max_size=6))
    count = draw(st.sampled_from([3, 45, 1_100]))
    chance = random.Random(draw(st.integers(0, 99)))
    spans = []
    for number in range(count):
        name = chance.choice(names)
        asked = chance.random() * 10
        failed = {"outcome": "failed", "error": chance.choice(names)} if chance.random() < 0.3 else {}
        spans.append(
            call(
                f"{number}{name}",
                asked,
                asked + chance.random(),
                step=name,
                waits=0.0,
                limits=(name,),
                **failed,
            )
        )
    return run(*sorted(spans, key=lambda each: each.asked), seconds=11.0, workflow=names[0])


def check_html(drawn):
    found = Page(drawn)
    assert found.open == []
    assert set(found.tags) <= HTML_TAGS
    assert {name for name, _ in found.attributes} <= ALLOWED
    styles = [value for name, value in found.attributes if name == "style"]
    assert all(
        re.fullmatch(r"(;?(left|width|top|height|padding-left):[\d.e+-]+(%|px|em))+", each) for each in styles
    )
    assert "://" not in re.sub(r'title="[^"]*"|data-tip="[^"]*"|>[^<]*<', "", drawn)
    return found


def check_svg(drawn):
    root = ET.fromstring(drawn)
    assert {each.tag.removeprefix(SVG) for each in root.iter()} <= SVG_TAGS
    for each in root.iter():
        assert not [name for name in each.attrib if name.startswith("on") or "href" in name]
    (style,) = [each.text for each in root.iter(f"{SVG}style")]
    assert "@import" not in style
    assert "url(" not in style
    return root


def cells(line):
    return sum(
        0 if unicodedata.category(c) in {"Mn", "Me", "Cf"} else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in line
    )


@given(hostile())
@settings(max_examples=60, deadline=None)
def test_hostile_names_stay_text(found):
    check_html(page(found))
    check_html(fragment(found))
    check_svg(svg(found))
    lines = text(found, width=80).split("\n")
    assert all(line.isprintable() or not set("\n\r\x1b\x00\u202e") & set(line) for line in lines)
    assert len(lines) <= 60
    assert max(map(cells, lines)) <= 80


def test_a_page_says_all_about_a_call_and_stands_alone():
    found = check_html(page(RESEARCH))
    tips = [value for name, value in found.attributes if name == "data-tip"]
    assert "search_news (5)\nfrom 1.10 s to 7.30 s: waited 2.30 s for openai, ran 3.90 s" in tips
    assert (
        "search_patents (6)\nfrom 1.10 s to 5.00 s: waited 3.10 s for openai, ran 800 ms, failed\n"
        "ValueError: HTTP 403 <script>alert(1)</script>"
    ) in tips
    assert "script" not in found.tags
    assert "link" not in found.tags
    words = "".join(found.words)
    assert "2 calls waited 5.40 s in all, one for 3.10 s; that held the run up for about 2.30 s" in words
    assert "Critical path: search_news 3.90 s" in words


def test_the_page_is_for_light_and_dark_and_any_width():
    drawn = RESEARCH.html()
    assert "@media (prefers-color-scheme:dark)" in drawn
    assert 'name="viewport"' in drawn
    assert LIGHT["run"] in drawn
    assert DARK["run"] in drawn


def test_a_notebook_gets_a_part_of_a_page():
    drawn = RESEARCH._repr_html_()
    assert drawn.startswith('<div class="weft-timeline">')
    # its rules are for itself only
    (style,) = re.findall("<style>(.*?)</style>", drawn)
    selectors = re.findall(r"(?:^|[{}])([^{}@]+)\{", style)
    assert all(each.strip().startswith(".weft-timeline") for group in selectors for each in group.split(","))


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_text_can_be_read(palette):
    pairs = [
        *(
            ("ink", "page"),
            ("dim", "page"),
            ("ink", "hover"),
            ("dim", "hover"),
            ("dim", "soft"),
            ("on-run", "run"),
        ),
        *(("on-run", "bad"), ("good", "good-soft"), ("bad-ink", "bad-soft"), ("tip-ink", "tip")),
    ]
    for over, under in pairs:
        assert contrast(palette[over], palette[under]) >= 4.5, (over, under)
    # what is no text needs 3, beside what it is drawn on
    for look in ("run", "bad", "gone", "ask", "retry", "good"):
        assert contrast(palette[look], palette["page"]) >= 3, look


def contrast(one, other):
    def luminance(colour):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


# Where things are


def texts(root):
    """(left, right, baseline, text) of each."""
    for each in root.iter(f"{SVG}text"):
        looks = each.get("class").split()
        size = 18 if "title" in looks else 13 if "heading" in looks else 10.5 if "small" in looks else 12
        width = text_width(each.text, size=size)
        x = float(each.get("x")) - (width / 2 if "middle" in looks else 0)
        yield x, x + width, float(each.get("y")), each.text


@pytest.mark.parametrize("width", [400, 700, 1000, 1600])
@pytest.mark.parametrize(
    "found", [RESEARCH, NIGHTLY, LANES, many(300), many(3_000)], ids=lambda t: t.workflow
)
def test_no_text_lies_on_another_or_leaves_the_picture(found, width):
    root = check_svg(svg(found, width=width))
    assert root.get("width") == str(width)
    height = float(root.get("height"))
    placed = sorted(texts(root), key=lambda each: each[2])
    for number, (left, right, y, words) in enumerate(placed):
        assert left >= 0, words
        assert right <= width + 1, words
        assert 0 < y < height, words
        for other in placed[number + 1 :]:
            if other[2] - y >= 9:
                break
            assert right <= other[0] + 1 or other[1] <= left + 1, (words, other)


def test_every_call_of_a_small_run_has_its_name_beside_it():
    root = check_svg(svg(RESEARCH))
    names = [words for left, _, _, words in texts(root) if left < 40]
    for each in RESEARCH.spans:
        name = each.step if len(each.step) < 30 else "search_papers_…s_we_know_of"
        assert [
            n for n in names if n == name or (n.startswith("search_pap") and "…" in n and len(each.step) > 30)
        ]


def test_bars_are_where_their_times_are():
    root = check_svg(svg(run(call("a", 0.0, 5.0), call("b", 5.0, 10.0), seconds=10.0)))
    bars = [each for each in root.iter(f"{SVG}rect") if each.get("class") == "running"][:2]
    (one, other) = [(float(bar.get("x")), float(bar.get("width"))) for bar in bars]
    assert one[1] == pytest.approx(other[1], abs=0.2)
    assert one[0] + one[1] == pytest.approx(other[0], abs=0.2)


def test_ten_thousand_calls_take_no_more_room_than_three_thousand():
    few, all_ = many(3_000), many(10_000)
    assert len(svg(all_)) < 60_000
    assert len(page(all_)) < 80_000
    assert svg(all_).count("<text") < svg(few).count("<text") + 20
    words = "".join(Page(page(all_)).words)
    assert "10,000 calls" in words
    assert re.search(r"These are the 16 longest of [\d,]+ parts", words)


# The terminal


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize(
    "found",
    [
        RESEARCH,
        NIGHTLY,
        LANES,
        many(24),
        many(5_000, steps=tuple(f"a step with a long name {n}" for n in range(60))),
        run(
            *(
                call(
                    str(n), n, n + 2, step=f"step {n} " * 9, waits=1, limits=tuple(f"limit {i} " * 9 for i in range(9)),
                    outcome="failed", error=f"ValueError: {n} " * 99,
                )
                for n in range(30)
            ),
            seconds=33, workflow="x" * 300, status="suspended", is_recorded=True,
        ),
    ],
)  # fmt: skip
def test_a_terminal_gets_at_most_sixty_lines_that_fit(found, width):
    lines = text(found, width=width).split("\n")
    assert len(lines) <= 60
    assert max(map(cells, lines)) <= width
    assert not [line for line in lines if line != line.rstrip()]


def test_widths_that_make_no_sense_are_taken_for_the_nearest():
    assert text(RESEARCH, width=1) == text(RESEARCH, width=60)
    assert text(RESEARCH, width=9_999) == text(RESEARCH, width=200)


def test_colours_only_if_asked_for(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" not in RESEARCH.text()
    coloured = RESEARCH.text(colour=True)
    assert "\x1b[31m" in coloured
    assert re.sub(r"\x1b\[\d+m", "", coloured) == RESEARCH.text()
    monkeypatch.setenv("NO_COLOR", "1")
    assert RESEARCH.text(colour=True) == RESEARCH.text()


# Files


@pytest.mark.parametrize(
    ("suffix", "begins"), [(".svg", "<svg"), (".HTML", "<!DOCTYPE"), (".txt", "research")]
)
def test_it_is_saved_by_its_suffix(tmp_path, suffix, begins):
    path = tmp_path / f"run{suffix}"
    RESEARCH.save(path)
    assert path.read_text(encoding="utf-8").startswith(begins)


def test_other_suffixes_themes_and_widths_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"'.*run.png'.*\.svg, \.html"):
        RESEARCH.save(tmp_path / "run.png")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="width=399"):
        RESEARCH.svg(width=399)
    with pytest.raises(InputError, match="blue"):
        RESEARCH.svg(theme="blue")


@pytest.mark.parametrize("status", ["running", "suspended", "finished", "failed", "cancelled"])
def test_a_run_without_calls_can_be_drawn_too(status):
    empty = run(seconds=0.0, status=status)
    check_html(page(empty))
    check_svg(svg(empty))
    assert "0 calls" in text(empty)
    assert "Nothing is known of any call." in text(empty)
    assert isinstance(empty.limits, dict)
    assert not any(isinstance(each, LimitCost) for each in empty.limits.values())


def test_drawing_needs_nothing_that_is_not_installed_with_weft():
    script = (
        "import sys\n"
        "for name in ('rich', 'click', 'pygraphviz', 'resvg_py'): sys.modules[name] = None\n"
        "from weft.observe.timeline import Timeline\n"
        "empty = Timeline.of_events([])\n"
        "empty.svg(), empty.html(), empty.text()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
