"""The run folder: what starting over takes away, and what it leaves."""

from pathlib import Path

from sembench.execution.folder import locked

OF_A_RUN = ("run.json", "records.jsonl", "summary.csv", "summary-dwell.csv", "summary-line.csv", "report.html")


def test_starting_over_leaves_no_table_of_an_earlier_run(tmp_path: Path) -> None:
    for name in (*OF_A_RUN, "notes.txt"):
        (tmp_path / name).write_text("{}")
    with locked(tmp_path, fresh=True):
        assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", ".lock"}


def test_nothing_is_taken_from_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "summary-mine.csv").write_text("")
    with locked(tmp_path, fresh=True):
        assert (tmp_path / "summary-mine.csv").is_file()
