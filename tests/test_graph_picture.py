"""What the picture of a graph shows of its plan."""

import pytest

from weft import Graph, GraphCompileError, InputError, node, parallel, router
from weft.core.graph_plan import GraphPlan, PlanJoin, PlanNode
from weft.graph_picture import box_id, picture_of_plan


def plan(names, edges="", joins=(), routers=()):
    names = names.split()
    nodes = [
        PlanNode(
            name.rstrip("."),
            is_start=not at,
            is_end=name.endswith("."),
            is_router=name.rstrip(".") in routers,
        )
        for at, name in enumerate(names)
    ]
    pairs = [tuple(edge.split(">")) for edge in edges.split()]
    return GraphPlan(nodes, pairs, [PlanJoin(tuple(sources.split()), to) for sources, to in joins])


def arrows(picture):
    """(from, to, kind) by the boxes' labels; a join is '+'."""
    label = {box.id: "+" if box.kind == "join" else box.label for box in picture.boxes}
    return [(label[arrow.source], label[arrow.destination], arrow.kind) for arrow in picture.arrows]


def test_nodes_are_boxes_that_say_what_they_are():
    picture = picture_of_plan(
        plan("a b c.", "a>b b>c", routers=["b"]), kinds={"a": "runnable", "b": "block"}, title="three"
    )
    assert [(box.label, box.kind, box.is_start, box.is_end) for box in picture.boxes] == [
        ("a", "runnable", True, False),
        ("b", "router", False, False),  # whatever else it is, it chooses
        ("c", "node", False, True),
    ]
    assert picture.title == "three"


def test_edges_joins_and_choices_are_arrows_of_their_kinds():
    graph = plan(
        "start choose a b end.", "start>choose choose>a choose>b choose>end", [("a b", "choose")], ["choose"]
    )
    assert arrows(picture_of_plan(graph)) == [
        ("start", "choose", "edge"),
        ("choose", "a", "choice"),
        ("choose", "b", "choice"),
        ("choose", "end", "choice"),
        ("a", "+", "join"),
        ("b", "+", "join"),
        ("+", "choose", "join"),
    ]


def test_a_join_says_what_meets_there_and_takes_the_place_of_edges():
    graph = plan("s a b end.", "s>a s>b a>end b>end", [("a b", "end")])
    picture = picture_of_plan(graph)
    (join,) = [box for box in picture.boxes if box.kind == "join"]
    assert join.label == "a, b meet before end"
    assert ("a", "end", "edge") not in arrows(picture)
    assert len(picture.arrows) == 5


def test_a_router_that_is_a_source_of_a_join_chooses_it():
    graph = plan("s r x end.", "s>r s>x r>x", [("r x", "end")], ["r"])
    assert ("r", "+", "choice") in arrows(picture_of_plan(graph))
    assert ("x", "+", "join") in arrows(picture_of_plan(graph))


def test_a_router_that_may_go_anywhere_has_one_arrow_that_says_so():
    picture = picture_of_plan(plan("s r a b.", "s>r a>r", routers=["r"]))
    assert ("r", "any node", "choice") in arrows(picture)
    assert len(picture.arrows) == 3
    (anywhere,) = [box for box in picture.boxes if box.kind == "anywhere"]
    assert anywhere.label == "any node"


def test_a_router_where_the_graph_ends_goes_nowhere():
    picture = picture_of_plan(plan("s r.", "s>r", routers=["r"]))
    assert arrows(picture) == [("s", "r", "edge")]


def test_boxes_are_found_by_their_number_whatever_the_names():
    graph = plan("0 1 anywhere 3.", "0>1 0>anywhere anywhere>3 1>3", [("1 anywhere", "3")])
    picture = picture_of_plan(graph)
    by_id = {box.id: box for box in picture.boxes}
    assert [by_id[box_id(graph.number[node.name])].label for node in graph.nodes] == [
        "0",
        "1",
        "anywhere",
        "3",
    ]
    assert by_id[box_id(graph.join_points[0])].kind == "join"


def test_a_graph_with_mistakes_can_be_looked_at():
    graph = plan("s a lost end.", "s>a")
    assert list(graph.problems())
    picture = picture_of_plan(graph)
    assert [box.label for box in picture.boxes] == ["s", "a", "lost", "end"]
    assert picture.mermaid()


def small_graph():
    @node(start=True)
    async def start():
        return {}

    @router
    async def choose():
        return {"choices": []}

    @node(end=True)
    async def end():
        return {}

    async def log():
        return {}

    graph = Graph(name="small").add_node(start).add_node(choose).add_node(end).add_node(log)
    graph.add_node(parallel(len, str), name="block")
    graph.add_router([start], choose, [end, "block"]).add_edge("block", end)
    return graph.add_branch(start, "log")


def test_a_graph_makes_its_own_picture():
    picture = small_graph().picture()
    assert {box.label: (box.kind, box.is_start, box.is_end) for box in picture.boxes} == {
        "start": ("node", True, False),
        "choose": ("router", False, False),
        "end": ("node", False, True),
        "log": ("node", False, False),
        "len, str begin at once": ("fork", False, False),
        "len": ("node", False, False),
        "str": ("node", False, False),
        "len, str meet": ("join", False, False),
    }
    assert [group.label for group in picture.groups] == ["block"]
    ids = {box.id: box.label for box in picture.boxes}
    ways = {(ids[each.source], ids[each.destination], each.kind, each.label) for each in picture.arrows}
    assert ways == {
        ("start", "choose", "edge", ""),
        ("choose", "end", "choice", ""),
        ("choose", "len, str begin at once", "choice", ""),
        ("len, str begin at once", "len", "edge", ""),
        ("len, str begin at once", "str", "edge", ""),
        ("len", "len, str meet", "join", ""),
        ("str", "len, str meet", "join", ""),
        ("len, str meet", "end", "edge", ""),
        ("start", "log", "choice", "beside"),
    }
    assert small_graph().mermaid() == picture.mermaid()


def test_visualize_writes_by_the_suffix_or_gives_the_picture(tmp_path):
    graph = small_graph()
    assert graph.visualize().boxes == graph.picture().boxes
    for name in ("g.mmd", "g.md", "g.svg"):
        assert graph.visualize(save_path=tmp_path / name) is None
        assert "choose" in (tmp_path / name).read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"\.svg"):
        graph.visualize(save_path=tmp_path / "g.xyz")


def test_what_is_no_graph_yet_has_no_picture():
    with pytest.raises(GraphCompileError, match="no nodes"):
        Graph().visualize()
