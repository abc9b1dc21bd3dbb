"""The contenders, one small file each: see `workloads.py` for what they have in common."""

from __future__ import annotations

#: Module by the name in tables, the limits first. Those of SLOW take minutes, and are measured only with --slow.
NAMES = {
    "python": "python",
    "asyncio": "bare_asyncio",
    "sqlite": "bare_sqlite",
    "sqlite, one each": "bare_sqlite_each",
    "weft functional": "weft_functional",
    "weft compose": "weft_compose",
    "weft graph": "weft_graph",
    "weft batch": "weft_batch",
    "weft map": "weft_map",
    "LangGraph functional": "langgraph_functional",
    "LangGraph graph": "langgraph_graph",
    "GraphAI": "graphai_",
    "PocketFlow": "pocketflow_",
    "pydantic-graph": "pydantic_graph_",
    "LlamaIndex Workflows": "llamaindex",
    "Burr": "burr_",
    "Hamilton": "hamilton_",
    "DBOS": "dbos_",
    "aiometer": "aiometer_",
    "Prefect": "prefect_",
    "Dask": "dask_",
    "Ray": "ray_",
}
SLOW = ("Prefect", "Dask", "Ray")
LIMITS = ("python", "asyncio", "sqlite", "sqlite, one each")
OURS = tuple(name for name in NAMES if name.startswith("weft"))
