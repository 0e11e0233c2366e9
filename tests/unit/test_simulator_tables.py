"""The two tables of a simulation: what may stand in them, and what is said of what may not."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from celery_allocator.errors import TraceError
from celery_allocator.model import FIELDS, LABELS, Requirements
from celery_allocator.simulator import TRACE_COLUMNS, TraceTask, read_nodes, read_trace
from tests.support.processes import ROOT


def table(folder: Path, text: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_trace_needs_two_columns_and_may_have_every_requirement(tmp_path: Path) -> None:
    every = "submit_s,duration_s,name,gpu_memory_mb,cpu_cores,ram_mb,priority,gpu_count,expected_runtime_s"
    every += ",tenant,size,gpu_model,node,anti_affinity,affinity"
    assert every.split(",") == [*TRACE_COLUMNS, *FIELDS, *LABELS]
    assert read_trace(table(tmp_path, "submit_s,duration_s\n1.5,2\n")) == [TraceTask(1.5, 2.0, Requirements())]
    (task,) = read_trace(table(tmp_path, f"{every}\n5,60,train,2048,4,8000,-3,2,90,vision,large,A100,n1,db,sdxl\n"))
    asked = Requirements(2048, 4, 8000, -3, tenant="vision", gpu_count=2, expected_runtime_s=90, size="large")
    asked = replace(asked, gpu_model="A100", node="n1", anti_affinity="db", affinity="sdxl")
    assert task == TraceTask(5.0, 60.0, asked, "train")


def test_a_trace_is_put_in_order_and_then_cut(tmp_path: Path) -> None:
    path = table(tmp_path, "duration_s,submit_s\n1,30\n2,10\n\n3,20\n4,10\n")
    assert [(task.submit_s, task.duration_s) for task in read_trace(path)] == [(10, 2), (10, 4), (20, 3), (30, 1)]
    assert [task.duration_s for task in read_trace(path, limit=2)] == [2, 4]


def test_an_empty_cell_is_the_default(tmp_path: Path) -> None:
    (task,) = read_trace(table(tmp_path, "submit_s,duration_s,gpu_memory_mb,tenant,name\n0,1,,,\n"))
    assert task == TraceTask(0, 1, Requirements(), "task")


def test_a_gzipped_trace_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(b"\xef\xbb\xbfsubmit_s,duration_s\r\n0,1\r\n"))
    assert len(read_trace(path)) == 1
    path.write_bytes(b"no gzip")
    with pytest.raises(TraceError, match=r"trace.csv.gz: cannot be read"):
        read_trace(path)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "submit_s=''"),
        ("submit_s\n1\n", 1, "duration_s='': is required, but not in the head"),
        ("submit_s,duration_s\n", 1, "the trace holds no tasks"),
        ("submit_s,duration_s,gpus\n", 1, "gpus='gpus': is no column of this table; known are submit_s, "),
        ("submit_s,duration_s,submit_s\n", 1, "submit_s='submit_s': stands more than once in the head"),
        ("submit_s,duration_s\n0,1\n\n2,soon\n", 4, "duration_s='soon': must be a number of seconds"),
        ("submit_s,duration_s\n0,\n", 2, "duration_s='': must be a number of seconds, and is required"),
        ("submit_s,duration_s\n-1,5\n", 2, "submit_s='-1': must be from 0 to"),
        ("submit_s,duration_s\n0,nan\n", 2, "duration_s='nan': must be from 0 to"),
        ("submit_s,duration_s\n0,1,7\n", 2, "the line has 3 values, the head 2 columns"),
        ("submit_s,duration_s,cpu_cores\n0,1,1.5\n", 2, "cpu_cores='1.5': must be a whole number"),
        ("submit_s,duration_s,gpu_memory_mb\n0,1,-4\n", 2, "gpu_memory_mb='-4': must be at least 0"),
        ("submit_s,duration_s,gpu_memory_mb\n0,1,4294967296\n", 2, "the unit is MB, not bytes"),
        ("submit_s,duration_s,tenant\n0,1,a/b\n", 2, "tenant='a/b': must not contain '/'"),
        ("submit_s,duration_s,name\n0,1,a\tb\n", 2, "name='a\\tb': must be 1 to 255 printable characters"),
    ],
)
def test_what_is_wrong_with_a_trace_is_said_with_its_line_and_value(
    tmp_path: Path, text: str, line: int, said: str
) -> None:
    with pytest.raises(TraceError) as caught:
        read_trace(table(tmp_path, text))
    assert str(caught.value).startswith(f"table.csv, line {line}: ")
    assert said in str(caught.value)
    assert caught.value.as_dict()["line"] == line


def test_nodes_are_numbered_where_there_are_several(tmp_path: Path) -> None:
    nodes = read_nodes(table(tmp_path, "node,gpus,gpu_memory_mb,cpu_cores,ram_mb,count\na,2,100,4,64,2\nb,0,,8,,\n"))
    assert [node.node for node in nodes] == ["a-1", "a-2", "b"]
    assert [(d.device_id, d.memory_mb, d.uuid) for d in nodes[1].devices] == [
        ("gpu_0", 100, "GPU-a-2-0"),
        ("gpu_1", 100, "GPU-a-2-1"),
    ]
    assert (nodes[1].cpu_cores, nodes[1].ram_mb) == ((0, 1, 2, 3), 64)
    assert (nodes[2].cpu_cores, nodes[2].ram_mb, nodes[2].devices) == (tuple(range(8)), 0, ())


@pytest.mark.parametrize(
    ("rows", "line", "said"),
    [
        ("", 1, "the table holds no nodes"),
        ("a,2,,4,\n", 2, "gpu_memory_mb='': is required where there are GPUs"),
        ("a,0,,,\n", 2, "cpu_cores='': must be a whole number, and is required"),
        ("a,0,,0,\n", 2, "cpu_cores=0: must be at least 1"),
        ("a,0,,5000,\n", 2, "cpu_cores=5000: must be at most 4096"),
        ("a/b,0,,4,\n", 2, "node='a/b': must not contain '/'"),
        ("a-2,0,,4,1\na,0,,4,2\n", 3, "node='a-2': a node of that name stands further up"),
        ("a,0,,4,0\n", 2, "count=0: must be at least 1"),
    ],
)
def test_what_is_wrong_with_the_nodes_is_said_too(tmp_path: Path, rows: str, line: int, said: str) -> None:
    with pytest.raises(TraceError) as caught:
        read_nodes(table(tmp_path, f"node,gpus,gpu_memory_mb,cpu_cores,count\n{rows}"))
    assert str(caught.value).startswith(f"table.csv, line {line}: ")
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_said_without_a_line(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"^none.csv: cannot be read: No such file"):
        read_trace(tmp_path / "none.csv")


def test_the_page_tells_every_column_and_shows_the_example() -> None:
    page = (ROOT / "docs/howto/simulate.md").read_text()
    for name in ("trace", "nodes"):
        assert f"```csv\n{(ROOT / f'examples/simulation/{name}.csv').read_text()}```" in page
    for column in (*TRACE_COLUMNS, *FIELDS, *LABELS, "node", "gpus", "count"):
        assert f"`{column}`" in page, column
