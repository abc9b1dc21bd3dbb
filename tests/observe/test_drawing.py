"""Pictures of workflows: the text, the layout and the drawings made of them."""

import re
import struct
import subprocess
import sys
import types
from collections import Counter
from functools import partial
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
import resvg_py
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.errors import DefinitionError, InputError, UsageError
from weft.observe import drawing, graphviz
from weft.observe.layout import SLANT, is_round, place
from weft.observe.lettering import shortened, shown, text_width
from weft.observe.picture import Arrow, Box, Group, Picture, all_groups, show

LOOP = Picture(
    (
        Box("a", "start", is_start=True),
        Box("b", "choose", "router"),
        Box("c", "tool_a"),
        Box("d", "tool b"),
        Box("e", "end", is_end=True),
        Box("f", "tool_a, tool b meet before choose", "join"),
    ),
    (
        Arrow("a", "b"),
        Arrow("b", "c", kind="choice"),
        Arrow("b", "d", "if it rains", kind="choice"),
        Arrow("b", "e", kind="choice"),
        Arrow("c", "f", kind="join"),
        Arrow("d", "f", kind="join"),
        Arrow("f", "b", kind="join"),
    ),
    title="a loop",
)

GROUPS = Picture(
    (
        Box("1", "pages", "block", is_start=True),
        Box("2", "flow", "runnable"),
        Box("3", "any node", "anywhere"),
        Box("4", "last", "router", is_end=True),
        Box("5", "alone"),
    ),
    (Arrow("1", "2"), Arrow("2", "2", "again"), Arrow("2", "3"), Arrow("2", "4"), Arrow("2", "4")),
    (Group("outer", ("1",), (Group("inner", ("2", "3")),)), Group("empty")),
)

NAMES = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="\"#;:&<>%{}[]()|`*_-~.+=!@$\\/' \n1axend", max_size=14),
    st.sampled_from(
        [
            *("end", "", "subgraph", 'say "hi"', "a]b", "style:#35;x", "%%{init: {}}%%", "direction LR", "1. step"),
            *("<script>alert(1)</script>", "&lt;", "#35;", "__init__", "www.example.com", "fa:fa-car", "a\nb"),
            *("x" * 200, "語" * 120, "\u202eabc", "\x00", "\x1b[0m", "\ud800", "ﬂ°°35¶ß", "]]>", "-->", "\ufffe"),
        ]
    ),
)  # fmt: skip
KINDS = st.sampled_from(["node", "node", "router", "join", "block", "runnable", "anywhere"])


@st.composite
def pictures(draw, most=12, names=NAMES):
    count = draw(st.integers(0, most))
    boxes = [
        Box(str(n), draw(names), draw(KINDS), is_start=draw(st.booleans()), is_end=draw(st.booleans()))
        for n in range(count)
    ]
    ends = st.integers(0, max(count - 1, 0)).map(str)
    kinds = st.sampled_from(["edge", "join", "choice"])
    drawn = draw(st.lists(st.builds(Arrow, ends, ends, names | st.just(""), kinds), max_size=count * 2))
    seen, arrows = Counter(), []
    for arrow in drawn:
        seen[arrow.source, arrow.destination] += 1
        if seen[arrow.source, arrow.destination] <= 2:  # Graphviz has no room for ten from a box to itself
            arrows.append(arrow)
    cuts = sorted(draw(st.sets(st.integers(0, count), max_size=4)))
    parts = [tuple(str(n) for n in range(low, high)) for low, high in pairwise(cuts)]
    groups = []
    for part in parts:  # beside the one before, or around it
        inner = (groups.pop(),) if groups and draw(st.booleans()) else ()
        groups.append(Group(draw(names), part, inner))
    return Picture(tuple(boxes), tuple(arrows), tuple(groups))


# Letters


def test_what_cannot_be_seen_is_escaped_and_lines_are_made_one():
    assert shown("a\n  b\tc") == "a b c"
    assert shown("\x1b[0m\u202e") == "\\x1b[0m\\u202e"
    assert shown("\ud800") == "\\ud800"
    assert shown("") == shown(" \n") == "''"
    assert shown("Käse 語 👩‍👧") == "Käse 語 👩‍👧"


@given(st.text(min_size=1, max_size=200), st.floats(30, 300))
def test_a_shortened_text_fits_and_keeps_its_two_ends(text, width):
    short = shortened(text, width, size=10)
    if text_width(text, size=10) <= width:
        assert short == text
        return
    assert text_width(short, size=10) <= width + 1e-9
    head, tail = short.split("…", 1) if "…" not in text else short.rsplit("…", 1)
    assert "…" in text or (text.startswith(head) and text.endswith(tail))


def test_names_that_differ_in_their_last_letters_differ_when_shortened():
    names = ["summarise_the_quarterly_reports_of_region_" + letter for letter in "ab"]
    first, second = (shortened(name, 200, size=13) for name in names)
    assert first != second
    assert len(first) < len(names[0])


# Mermaid


def test_mermaid_of_a_router_and_a_join():
    assert (
        LOOP.mermaid()
        == """\
flowchart TD
    n0("start"):::node
    n1{{"choose"}}:::router
    n2("tool_a"):::node
    n3("tool b"):::node
    n4(["end"]):::last
    n5{"#43;"}:::join
    sn0(( )):::first --> n0
    n0 --> n1
    n1 -.-> n2
    n1 -.->|"if it rains"| n3
    n1 -.-> n4
    n2 ==> n5
    n3 ==> n5
    n5 ==> n1
    classDef node fill:#e8f0fb,stroke:#4f77ad,color:#16263d
    classDef router fill:#fff0c8,stroke:#b97f00,color:#3d2b00
    classDef join fill:#8557c9,stroke:#5f35a3,color:#ffffff
    classDef first fill:#2f9e57,stroke:#1d7a3f,color:#ffffff
    classDef last fill:#fde3e9,stroke:#bd3a58,color:#4a0f1e,stroke-width:4px
"""
    )


def test_mermaid_of_groups():
    text = GROUPS.mermaid(direction="right")
    expected = """\
flowchart LR
    n3{{"last"}}:::last
    n4("alone"):::node
    subgraph g0["outer"]
    n0[/"pages"\\]:::block
    subgraph g1["inner"]
    n1[["flow"]]:::runnable
    n2("any node"):::anywhere
    end
    end
    subgraph g2["empty"]
    end
    sn0(( )):::first --> n0
    n0 --> n1
    n1 -->|"again"| n1
    n1 --> n2
    n1 --> n3
    n1 --> n3
"""
    assert text.partition("    classDef")[0] == expected
    assert text.endswith("    class g0,g1,g2 frame\n")


LABEL = r'"((?:[^\x00-\x7f]|[A-Za-z0-9 ,_/-]|#\d+;)+)"'
LINE = re.compile(
    "|".join(
        [
            r"flowchart TD",
            rf"n\d+(?:\(|\(\[|\{{\{{|\{{|\[/|\[\[){LABEL}(?:\)|\]\)|\}}\}}|\}}|\\\]|\]\]):::[a-z]+",
            rf"subgraph g\d+\[{LABEL}\]",
            r"end",
            r"sn\d+\(\( \)\):::first --> n\d+",
            rf"n\d+ (?:-->|==>|-\.->)(?:\|{LABEL}\|)? n\d+",
            r"classDef [a-z]+ [a-z0-9:#,\- ]+",
            r"class g\d+(?:,g\d+)* frame",
        ]
    )
)


def read(code):
    return re.sub(r"#(\d+);", lambda found: chr(int(found[1])), code)


@given(pictures())
def test_mermaid_is_valid_and_shows_the_names_whatever_they_are(picture):
    lines = [line.strip(" ") for line in picture.mermaid().removesuffix("\n").split("\n")]
    for line in lines:
        found = LINE.fullmatch(line)
        assert found, line
        for code in filter(None, found.groups()):
            # what Mermaid takes for something else even in a label
            assert not re.search(
                r"direction\s|[ﬂ¶]|(^|\W)[_-]|[_-]($|\W)", re.sub(r"#\d+;", "", code), re.IGNORECASE
            )
    shown_there = [read(code) for line in lines for code in filter(None, LINE.fullmatch(line).groups())]
    labels = [box.label for box in picture.boxes if box.kind != "join"]
    labels += [arrow.label for arrow in picture.arrows if arrow.label]
    labels += [group.label for group in all_groups(picture.groups)]
    expected = [shortened(shown(label).replace("ﬂ", "fl").replace("¶", "⁋"), 40, size=1) for label in labels]
    expected += ["+"] * sum(box.kind == "join" for box in picture.boxes)
    assert sorted(shown_there) == sorted(expected)
    ways = [line for line in lines if re.fullmatch(r"s?n\d+(\(\( \)\):::first)? [-=.>]+(\|.*\|)? n\d+", line)]
    assert len(ways) == len(picture.arrows) + sum(box.is_start for box in picture.boxes)


# Layout


def overlap(one, other, *, by=0.5):
    return (
        abs(one.x - other.x) < (one.width + other.width) / 2 - by
        and abs(one.y - other.y) < (one.height + other.height) / 2 - by
    )


def points_of(curve):
    for points in curve.parts:
        yield from points_of_part(points)


def points_of_part(points):
    for at in range(0, len(points) - 1, 3):
        one, two, three, four = points[at : at + 4]
        for part in range(13):
            t, u = part / 12, 1 - part / 12
            yield tuple(
                u**3 * a + 3 * u * u * t * b + 3 * u * t * t * c + t**3 * d
                for a, b, c, d in zip(one, two, three, four)
            )


def distance(frame, box, point):
    """From a box, as it is drawn, outwards; negative inside."""
    across, down = frame.width / 2, frame.height / 2
    x, y = abs(point[0] - frame.x), abs(point[1] - frame.y)
    if box.kind == "join":
        return (x + y - across) / 2**0.5
    if is_round(box):
        return (max(x - across + down, 0) ** 2 + y**2) ** 0.5 - down
    if box.kind == "router":
        across -= SLANT * min(y / down, 1)
    return max(x - across, y - down)


@settings(deadline=None, max_examples=50)
@given(pictures(most=25, names=st.text("abc ", max_size=30)), st.sampled_from(["down", "right"]))
def test_nothing_is_drawn_over_a_box(picture, direction):
    layout = place(picture, direction=direction)
    frames = dict(zip([box.id for box in picture.boxes], layout.boxes))
    boxes = {box.id: box for box in picture.boxes}
    for at, frame in enumerate(layout.boxes):
        assert not any(overlap(frame, other) for other in layout.boxes[:at])
    for arrow, curve in zip(picture.arrows, layout.arrows):
        for name, frame in frames.items():
            assert curve.label is None or not overlap(curve.label, frame, by=1)
            if name not in (arrow.source, arrow.destination):
                assert all(distance(frame, boxes[name], point) > -1.5 for point in points_of(curve))
        # and it begins and ends at its boxes
        assert abs(distance(frames[arrow.source], boxes[arrow.source], curve.parts[0][0])) < 4
        assert abs(distance(frames[arrow.destination], boxes[arrow.destination], curve.tip)) < 4
    assert len(layout.starts) == sum(box.is_start for box in picture.boxes)


@settings(deadline=None, max_examples=50)
@given(pictures(names=st.text("abc ", max_size=30)))
def test_groups_are_around_what_is_in_them_and_all_is_on_the_page(picture):
    layout = place(picture)
    frames = dict(zip([box.id for box in picture.boxes], layout.boxes))
    by_group = dict(zip(map(id, all_groups(picture.groups)), layout.groups))
    for group in all_groups(picture.groups):
        outer = by_group[id(group)]
        inside = [frames[member] for member in group.members] + [by_group[id(each)] for each in group.groups]
        for frame in inside:
            assert abs(outer.x - frame.x) + frame.width / 2 <= outer.width / 2
            assert abs(outer.y - frame.y) + frame.height / 2 <= outer.height / 2
    for frame in (*layout.boxes, *layout.groups):
        assert frame.width / 2 - 1 <= frame.x <= layout.width - frame.width / 2 + 1
        assert frame.height / 2 - 1 <= frame.y <= layout.height - frame.height / 2 + 1


def test_a_chain_goes_down_or_right():
    chain = Picture(
        tuple(Box(str(n), "x") for n in range(5)), tuple(Arrow(str(n), str(n + 1)) for n in range(4))
    )
    down, right = place(chain).boxes, place(chain, direction="right").boxes
    assert [box.y for box in down] == sorted({box.y for box in down})
    assert [box.x for box in right] == sorted({box.x for box in right})
    assert len({box.x for box in down}) == len({box.y for box in right}) == 1


def test_two_hundred_boxes_are_laid_out():
    count = 200
    arrows = [
        Arrow(str(n), str(n + step)) for n in range(count) for step in (1, 3, -4) if 0 <= n + step < count
    ]
    picture = Picture(tuple(Box(str(n), f"step_{n}") for n in range(count)), tuple(arrows))
    assert len(place(picture).arrows) == len(arrows)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ended with -11"),
        ("raise SystemError('no plugin')", "ended with 1: SystemError: no plugin"),
        ("import time; time.sleep(60)", "took longer than 0.5 s"),
    ],
)
def test_a_crash_of_the_layout_is_an_error_and_nothing_more(program, message, monkeypatch):
    monkeypatch.setattr(graphviz, "_PROGRAM", program)
    monkeypatch.setattr(graphviz, "_LONGEST", 0.5)
    with pytest.raises(UsageError, match=rf"{message}.*picture\.mermaid\(\)"):
        LOOP.svg()


def test_a_label_is_half_way_of_its_arrow_and_in_the_group_of_both_ends():
    picture = Picture(
        tuple(Box(name, name) for name in "abcd"),
        (Arrow("a", "b", "in"), Arrow("c", "d", "outer"), Arrow("a", "c", "across")),
        (Group("outer", ("c", "d"), (Group("inner", ("a", "b")),)),),
    )
    layout = place(picture)
    outer, inner = layout.groups
    within, around, across = (curve.label for curve in layout.arrows)
    assert overlap(within, inner)
    for label in (around, across):
        assert overlap(label, outer)
        assert not overlap(label, inner)
    for curve, (source, destination) in zip(layout.arrows, ((0, 1), (2, 3), (0, 2))):
        assert layout.boxes[source].y < curve.label.y < layout.boxes[destination].y
        assert len(curve.parts) == 2


# SVG

SVG = "{http://www.w3.org/2000/svg}"


@settings(deadline=None, max_examples=50)
@given(pictures())
def test_an_svg_is_valid_shows_every_label_and_runs_nothing(picture):
    text = picture.svg()
    assert text == picture.svg()
    root = ET.fromstring(text.encode())
    assert {element.tag for element in root.iter()} <= {
        SVG + name for name in ("svg", "title", "style", "g", "rect", "circle", "polygon", "path", "text")
    }
    attributes = {name for element in root.iter() for name in element.attrib}
    assert not [name for name in attributes if name == "id" or name.startswith("on") or "href" in name]
    titles = [element.text.removesuffix(")").rsplit(" (")[0] for element in root.iter(SVG + "title")]
    told = "\n".join(element.text for element in root.iter(SVG + "title"))
    assert titles
    for label in [box.label for box in picture.boxes] + [
        arrow.label for arrow in picture.arrows if arrow.label
    ]:
        assert shown(label) in told


def test_an_svg_is_told_about_and_says_what_boxes_are():
    root = ET.fromstring(LOOP.svg())
    assert root.get("aria-label") == "a loop: 6 boxes, 7 arrows"
    assert root.get("role") == "img"
    titles = [element.text for element in root.iter(SVG + "title")]
    for title in ("start (start)", "choose (router)", "tool_a", "end (end)", "if it rains"):
        assert title in titles


def test_edges_joins_choices_and_ends_look_different():
    root = ET.fromstring(LOOP.svg())
    kinds = [group.get("class") for group in root.iter(SVG + "g")]
    assert [kinds.count(kind) for kind in ("edge", "way", "choice", "choice small label")] == [1, 3, 3, 1]
    shapes = {
        group.find(SVG + "title").text: [
            shape.tag.removeprefix(SVG) for shape in group if (shape.get("class") or "").startswith("shape")
        ]
        for group in root.iter(SVG + "g")
        if group.find(SVG + "title") is not None
    }
    assert shapes["tool_a"] == ["rect"]
    assert shapes["end (end)"] == ["rect", "rect"]
    assert shapes["choose (router)"] == ["polygon"]
    assert shapes["start is where it starts"] == ["circle"]


def test_the_styles_of_one_picture_touch_no_other_and_follow_the_reader():
    for theme in ("auto", "light", "dark"):
        (style,) = ET.fromstring(LOOP.svg(theme=theme)).iter(SVG + "style")
        assert ("prefers-color-scheme:dark" in style.text) == (theme == "auto")
        rules = style.text.replace("@media (prefers-color-scheme:dark){", "").replace("}}", "}")
        selectors = re.findall(r"([^{}]+)\{", rules)
        assert len(selectors) > 20
        assert all(selector.startswith(f".weft-{theme} ") for selector in selectors)
    assert "#13171f" not in LOOP.svg(theme="light")
    assert "#ffffff}" not in LOOP.svg(theme="dark").partition(".page{")[2][:20]


def test_a_long_label_is_shortened_and_told_in_full():
    picture = Picture((Box("a", "x" * 100 + "_last"),))
    texts = [element.text for element in ET.fromstring(picture.svg()).iter(SVG + "text")]
    assert len(texts[0]) < 40
    assert texts[0].endswith("_last")
    assert "x" * 100 + "_last</title>" in picture.svg()


def test_an_empty_picture_can_be_drawn():
    assert ET.fromstring(Picture(()).svg()).get("aria-label") == "workflow: 0 boxes, 0 arrows"
    assert Picture(()).mermaid() == "flowchart TD\n"


# PNG


@pytest.fixture
def font():
    try:
        drawing._check_fonts()
    except UsageError as error:
        pytest.skip(str(error))


def size_of(image):
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", image[16:24])


def test_a_png_has_the_size_and_the_theme_asked_for(font):
    root = ET.fromstring(LOOP.svg())
    once = size_of(LOOP.png(scale=1))
    assert once == pytest.approx((float(root.get("width")), float(root.get("height"))), abs=1)
    assert size_of(LOOP.png(scale=3)) == pytest.approx((once[0] * 3, once[1] * 3), abs=3)
    assert LOOP.png() == LOOP.png(theme="light") != LOOP.png(theme="dark")
    assert LOOP.png() == LOOP.png()


def test_a_png_does_not_become_too_large_to_be_opened(font, monkeypatch):
    monkeypatch.setattr(drawing, "_MOST_PIXELS", 400_000)
    width, height = size_of(LOOP.png(scale=60))
    assert 390_000 < width * height < 410_000


def test_what_is_no_theme_or_direction_is_refused_with_those_there_are():
    with pytest.raises(InputError, match="direction='up': it has to be one of 'down', 'right'"):
        LOOP.mermaid(direction="up")
    with pytest.raises(InputError, match="direction='up'"):
        LOOP.svg(direction="up")
    with pytest.raises(InputError, match="theme='blue'.*'auto', 'light', 'dark'"):
        LOOP.svg(theme="blue")
    with pytest.raises(InputError, match="theme='auto'.*'light', 'dark'"):
        LOOP.png(theme="auto")  # an image has no reader to follow


@pytest.mark.parametrize("scale", [0, -1, float("nan")])
def test_a_png_of_no_size_is_refused(scale):
    with pytest.raises(InputError, match="scale="):
        LOOP.png(scale=scale)


def test_without_a_font_a_png_is_refused_and_not_left_without_text(monkeypatch):
    monkeypatch.setattr(resvg_py, "svg_to_bytes", partial(resvg_py.svg_to_bytes, skip_system_fonts=True))
    drawing._check_fonts.cache_clear()
    with pytest.raises(UsageError, match="font"):
        LOOP.png()


# Without the extra


@pytest.mark.parametrize("module", ["pygraphviz", "resvg_py"])
def test_without_the_extra_the_error_names_it(module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=re.escape('pip install "weft[draw]"')):
        LOOP.save(tmp_path / "loop.png")
    LOOP.save(tmp_path / "loop.mmd")


def test_without_the_extra_a_notebook_is_given_the_mermaid_text(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    assert LOOP._repr_svg_() is None
    assert LOOP._repr_mimebundle_() == {"text/vnd.mermaid": LOOP.mermaid(), "text/plain": repr(LOOP)}


def test_pictures_are_made_without_importing_what_draws_them():
    code = (
        "import sys; from weft.observe.picture import Box, Picture; Picture((Box('a', 'b'),)).mermaid();"
        "assert not {'pygraphviz', 'resvg_py', 'IPython'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Files and notebooks


def test_the_suffix_says_what_is_written(tmp_path, font):
    for suffix in ("svg", "png", "mmd", "md", "SVG"):
        assert show(LOOP, save_path=str(tmp_path / f"loop.{suffix}")) is None
    assert (tmp_path / "loop.svg").read_text(encoding="utf-8") == LOOP.svg()
    assert (tmp_path / "loop.SVG").read_bytes() == (tmp_path / "loop.svg").read_bytes()
    assert (tmp_path / "loop.png").read_bytes() == LOOP.png()
    assert (tmp_path / "loop.mmd").read_text(encoding="utf-8") == LOOP.mermaid()
    assert (tmp_path / "loop.md").read_text(encoding="utf-8") == f"```mermaid\n{LOOP.mermaid()}```\n"
    LOOP.save(tmp_path / "right.mmd", direction="right")
    assert (tmp_path / "right.mmd").read_text(encoding="utf-8").startswith("flowchart LR")


@pytest.mark.parametrize("name", ["loop.pdf", "loop", "svg"])
def test_another_suffix_is_refused_with_those_there_are(name, tmp_path):
    with pytest.raises(InputError, match=rf"{name}.*\.svg, \.png, \.mmd, \.md"):
        LOOP.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def ipython(shell, shown_there):
    package, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    package.get_ipython = lambda: shell
    display.display = shown_there.append
    return {"IPython": package, "IPython.display": display}


def test_a_running_notebook_shows_it_once(monkeypatch):
    there = []
    for name, module in ipython(object(), there).items():
        monkeypatch.setitem(sys.modules, name, module)
    assert show(LOOP) is None  # else the cell would show it again
    assert there == [LOOP]
    bundle = LOOP._repr_mimebundle_()
    assert bundle["image/svg+xml"] == LOOP._repr_svg_() == LOOP.svg()
    assert bundle["text/plain"] == "<Picture of 'a loop': 6 boxes, 7 arrows>"


def test_elsewhere_it_is_given_back(monkeypatch):
    assert show(LOOP) is LOOP
    there = []
    for name, module in ipython(None, there).items():  # imported, but not running
        monkeypatch.setitem(sys.modules, name, module)
    assert show(LOOP) is LOOP
    assert there == []


# Mistakes of who makes a picture


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((Box("a", "x"), Box("a", "y")),), "two boxes of the picture have the id 'a'"),
        (((Box("a", "x"),), (Arrow("a", "b"),)), "'a' -> 'b' names 'b'"),
        (((Box("a", "x"),), (), (Group("g", ("b",)),)), "member 'b'"),
        (((Box("a", "x"),), (), (Group("g", ("a",), (Group("h", ("a",)),)),)), "'a' is in two groups"),
    ],
)
def test_a_picture_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(DefinitionError, match=message):
        Picture(*arguments)
