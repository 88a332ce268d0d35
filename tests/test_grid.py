"""Running notebooks: unknown parameters, failing cells, records."""

import json

import nbformat
import papermill
import pytest

from onesug_lite.grid import NOTEBOOKS, RUN, GridError, chapter_paths, read_records, run_notebook, run_table


def _notebook(path, *sources: str):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


def test_unknown_parameter_is_an_error(tmp_path):
    with pytest.raises(
        GridError, match="has no parameter 'bean'; expected one of build, profile, record, seed, variant"
    ):
        run_notebook(NOTEBOOKS / RUN, tmp_path / "out.ipynb", {"bean": 3})
    assert not (tmp_path / "out.ipynb").exists()


def test_every_chapter_takes_the_common_parameters():
    assert [path.name[:2] for path in chapter_paths()] == ["01", "02", "03", "04", "05", "06", "m1", "m2", "m3"]
    for path in chapter_paths():
        assert {"profile", "seed", "build"} <= set(papermill.inspect_notebook(str(path)))


def test_missing_notebook_is_named(tmp_path):
    with pytest.raises(GridError, match="no notebook"):
        run_notebook(tmp_path / "none.ipynb", tmp_path / "out.ipynb", {})


def test_failing_cell_fails_the_run(tmp_path):
    source = _notebook(tmp_path / "in.ipynb", "x = 1", "assert x == 2, 'x is not two'")
    with pytest.raises(papermill.PapermillExecutionError, match="x is not two"):
        run_notebook(source, tmp_path / "out.ipynb", {"x": 3}, progress=False)


def test_records_of_one_run(market, tmp_path):
    records = run_table(tmp_path, "smoke", seeds=1, names=["popularity"])
    assert [(r["variant"], r["seed"]) for r in records] == [("popularity", 0)]
    record = records[0]
    assert len(record["rank"]) == len(record["request_id"]) == len(record["behaviour"])
    assert read_records(tmp_path) == records
    assert json.loads((tmp_path / "popularity-seed0.json").read_text())["profile"] == "smoke"
    shown = {(r["rows"], r["metric"], r["band"]) for r in record["summary"]}
    assert {("click", "HR@16", "all"), ("order", "MRR@16", "tail")} <= shown


def test_no_records_is_named(tmp_path):
    with pytest.raises(GridError, match="make grid"):
        read_records(tmp_path)
