"""`sembench compare` on run folders whose scores are known, and on folders that are none."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import Tell
from PIL import Image
from small import records_of, write_records

from sembench.comparison import equivalence_margin
from sembench.metrics.fidelity import PSNR, SSIM, SSIM_MATCHED
from sembench.metrics.metrology import SPECS
from sembench.statistics.pairs import sign_flip_p

CASES = [f"c{number:02}" for number in range(12)]
BASE = dict(zip(CASES, np.random.default_rng(1).normal(0.6, 0.1, 12).tolist(), strict=True))
SHIFTS = {"good": 0.1, "like_good": 0.101, "input": 0.0, "oracle": 0.4}


def _row(name: str, settings: dict[str, Any] | None = None, row_id: str = "") -> dict[str, Any]:
    kind = "control" if name == "oracle" else "restorer"
    return {"row": row_id or f"{name}-1", "restorer": name, "kind": kind, "settings": settings or {}}


def _record(row: dict[str, Any], case: str, value: float | None, status: str = "ok") -> dict[str, Any]:
    record = {"schema": 1, **row, "case": case, "group": f"g{case}", "status": status}
    if status == "ok":
        record |= {"metrics": {"ssim": value, "psnr": 20.0}, "seconds": {"restore": 1.0}, "input_sha256": case}
    return record


def _write(folder: Path, rows: list[dict[str, Any]], records: list[dict[str, Any]], **changed: Any) -> Path:
    folder.mkdir()
    description = {
        **{"schema": 1, "protocol_digest": "aaaaaaaa11", "data_digest": "dddddddd22", "data": "made", "rows": rows},
        "protocol": {"name": "small", "version": 3, "metrics": {"primary": "ssim"}},
        **changed,
    }
    (folder / "run.json").write_text(json.dumps(description))
    write_records(folder, records)
    return folder


def _scores(name: str) -> dict[str, float]:
    wobble = np.random.default_rng(len(name)).normal(0, 0.001, 12)
    return {case: BASE[case] + SHIFTS[name] + wobble[i] for i, case in enumerate(CASES)}


def _made(folder: Path, names: tuple[str, ...] = ("input", "good", "like_good", "oracle"), **changed: Any) -> Path:
    rows = [_row(name) for name in names]
    records = [_record(row, case, value) for row in rows for case, value in _scores(row["restorer"]).items()]
    return _write(folder, rows, records, **changed)


@pytest.fixture
def tell(tell: Tell) -> Tell:
    return partial(tell, "compare")


def _refused(told: tuple[int, str, str], *words: str) -> None:
    code, output, errors = told
    assert (code, output) == (2, "")
    assert errors.count("\n") == 1
    for word in words:
        assert word in errors


def test_what_was_put_in_comes_out(tell: Tell, tmp_path: Path) -> None:
    run = _made(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.iterdir()}
    code, output, _ = tell(run, "--json")
    assert code == 0
    found = json.loads(output)
    assert (found["metric"], found["cases"], found["groups"], found["separable"]) == ("ssim", 12, 12, True)
    places = {line["restorer"]: (line["letters"], line["rank"]) for line in found["restorers"]}
    assert places == {"like_good": ("a", [1, 2]), "good": ("a", [1, 2]), "input": ("b", [3, 3])}
    pair = next(pair for pair in found["pairs"] if (pair["restorer"], pair["against"]) == ("good", "input"))
    differences = [_scores("good")[case] - _scores("input")[case] for case in CASES]
    assert pair["difference"] == pytest.approx(np.mean(differences))
    assert pair["low"] < 0.1 < pair["high"]
    assert pair["p"] == sign_flip_p(differences, CASES) == 2 / 2**12
    assert pair["p_holm"] == pytest.approx(3 * pair["p"]), "the smallest of three pairs"
    assert (pair["wins"], pair["losses"], pair["ties"], pair["mark"]) == (12, 0, 0, "better")
    alike = next(pair for pair in found["pairs"] if "input" not in (pair["restorer"], pair["against"]))
    assert alike["equivalent"]
    assert found["controls"] == {"oracle": pytest.approx(np.mean(list(_scores("oracle").values())))}
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_the_table_names_units_and_the_plot_is_a_picture(tell: Tell, tmp_path: Path) -> None:
    run, plot = _made(tmp_path / "run"), tmp_path / "new" / "plot.png"
    code, output, errors = tell(run, "--against", "input", "--plot", plot)
    assert (code, errors) == (0, "")
    assert "12 cases in 12 groups, which all 3 restorers solved" in output
    assert "oracle (control)" in output
    assert output.count("better") == 2
    assert "ssim ↑" in output
    with Image.open(plot) as picture:
        assert min(picture.size) > 150
    _, output, _ = tell(run, "--metric", "psnr")
    assert "psnr ↑" in output
    assert "dB" in output
    assert "0/0/12" in output


def test_pairs_against_one_are_those_of_all_pairs_turned(tell: Tell, tmp_path: Path) -> None:
    run = _made(tmp_path / "run")
    every = json.loads(tell(run, "--json")[1])["pairs"]
    turned = json.loads(tell(run, "--json", "--against", "good")[1])["pairs"]
    assert [(pair["restorer"], pair["against"]) for pair in turned] == [("like_good", "good"), ("input", "good")]
    straight = next(pair for pair in every if (pair["restorer"], pair["against"]) == ("good", "input"))
    assert turned[1]["difference"] == pytest.approx(-straight["difference"])
    assert (turned[1]["p_holm"], turned[1]["losses"]) == (straight["p_holm"], straight["wins"])
    assert turned[1]["mark"] == "worse"


def _with_gaps(folder: Path, names: tuple[str, ...] = ("input", "good", "like_good")) -> Path:
    """good failed on two of the twelve cases, like_good has no value on a third."""
    rows = [_row(name) for name in names]
    records = []
    for row in rows:
        for case, value in _scores(row["restorer"]).items():
            lost = row["restorer"] == "good" and case in ("c00", "c01")
            void = row["restorer"] == "like_good" and case == "c02"
            records.append(_record(row, case, None if void else value, "failed" if lost else "ok"))
    return _write(folder, rows, records)


def test_only_cases_that_all_solved_count_and_the_others_are_told(tell: Tell, tmp_path: Path) -> None:
    run = _with_gaps(tmp_path / "run")
    found = json.loads(tell(run, "--json", "--restorer", "input,good,like_good")[1])
    assert (found["cases"], found["groups"]) == (9, 9)
    counts = {line["restorer"]: (line["failed"], line["undefined"]) for line in found["restorers"]}
    assert counts == {"input": (0, 0), "good": (2, 0), "like_good": (0, 1)}
    assert "3 of 12 cases are left out for want of a value: good 2, like_good 1" in " ".join(found["notices"])
    mean = next(line["mean"] for line in found["restorers"] if line["restorer"] == "input")
    assert mean == pytest.approx(np.mean([_scores("input")[case] for case in CASES[3:]]))
    assert json.loads(tell(run, "--json", "--restorer", "input,like_good")[1])["cases"] == 11


def test_who_lacks_more_than_a_tenth_of_the_cases_does_not_decide_on_which_the_others_are_ranked(
    tell: Tell, tmp_path: Path
) -> None:
    """One of twelve cases is less than a tenth, two are more: whoever lacks two stands apart, with its counts."""
    run = _with_gaps(tmp_path / "run")
    found = json.loads(tell(run, "--json")[1])
    assert (found["cases"], found["groups"]) == (11, 11)
    assert [line["restorer"] for line in found["restorers"]] == ["like_good", "input"]
    (out,) = found["unranked"]
    assert (out["restorer"], out["failed"], out["undefined"], out["missing"], out["cases"]) == ("good", 2, 0, 2, 12)
    assert out["mean"] == pytest.approx(np.mean([_scores("good")[case] for case in CASES[2:]]))
    assert "good has no value on 2 of 12 cases and is not ranked" in found["notices"]
    assert {name for pair in found["pairs"] for name in (pair["restorer"], pair["against"])} == {"input", "like_good"}
    _, output, _ = tell(run)
    assert "unranked" in next(line for line in output.splitlines() if " good " in line)
    _refused(tell(run, "--against", "good"), "no value on 2 of 12 cases", "--restorer")
    alone = _with_gaps(tmp_path / "alone", ("input", "good"))
    _refused(tell(alone), "only input has values of ssim on enough of the 12 cases", "good 2", "--restorer")


def test_who_fails_on_most_cases_takes_none_from_the_others(tell: Tell, tmp_path: Path) -> None:
    rows = [_row("input"), _row("good"), _row("like_good")]
    lost = {"good": CASES[:1], "like_good": CASES[5:]}
    records = [
        _record(row, case, value, "failed" if case in lost.get(row["restorer"], ()) else "ok")
        for row in rows
        for case, value in _scores(row["restorer"]).items()
    ]
    found = json.loads(tell(_write(tmp_path / "run", rows, records), "--json")[1])
    assert [line["restorer"] for line in found["restorers"]] == ["good", "input"]
    assert found["cases"] == 11
    assert [(out["restorer"], out["missing"]) for out in found["unranked"]] == [("like_good", 7)]


def test_a_variant_is_named_beside_the_protocols_own_row(tell: Tell, tmp_path: Path) -> None:
    plain, few = _row("good", {"width": 3}, "good-1"), _row("good", {"width": 3}, "good-2") | {"variant": {"pairs": 2}}
    records = []
    for row, shift in ((plain, 0.0), (few, -0.05)):
        about = {name: value for name, value in row.items() if name != "variant"}
        records += [_record(about, case, value + shift) for case, value in _scores("good").items()]
    found = json.loads(tell(_write(tmp_path / "run", [plain, few], records), "--json")[1])
    assert [line["restorer"] for line in found["restorers"]] == ["good", "good (pairs=2)"]
    alone = [row for row in records if row["row"] == "good-2"]
    other = _row("input")
    records = alone + [_record(other, case, value) for case, value in _scores("input").items()]
    found = json.loads(tell(_write(tmp_path / "alone", [few, other], records), "--json")[1])
    assert {line["restorer"] for line in found["restorers"]} == {"good (pairs=2)", "input"}, "also without its namesake"


def test_few_groups_are_said_to_be_few(tell: Tell, tmp_path: Path) -> None:
    rows = [_row("input"), _row("good")]
    records = [_record(row, case, _scores(row["restorer"])[case]) for row in rows for case in CASES[:5]]
    run = _write(tmp_path / "run", rows, records)
    code, output, _ = tell(run)
    assert code == 0
    assert "too few groups to separate" in output
    assert "with 5 groups no p falls below 0.062" in output
    assert json.loads(tell(run, "--json")[1])["restorers"][0]["rank"] == [1, 2]


def test_who_picks_some_is_told_of_how_many_pairs(tell: Tell, tmp_path: Path) -> None:
    run = _made(tmp_path / "run")
    told = "corrected for the 1 pair shown, of 3 in the run: choose before you look"
    footer = " ".join(tell(run, "--restorer", "good,input")[1].split())
    assert told in footer
    found = json.loads(tell(run, "--restorer", "good,input", "--json")[1])
    assert (found["pairs_corrected_for"], found["pairs_in_run"]) == (1, 3)
    assert "choose before you look" not in tell(run)[1]
    assert "choose before you look" not in tell(run, "--against", "input")[1], "corrected for all pairs of the run"
    assert "choose before you look" not in tell(run, "--restorer", "input,like_good,good")[1]
    two = _made(tmp_path / "two", ("input",)), _made(tmp_path / "other", ("good", "like_good"))
    footer = " ".join(tell(*two, "--restorer", "good,input")[1].split())
    assert "corrected for the 1 pair shown, of 3 in the runs: choose before you look" in footer


def test_whom_others_are_compared_against_is_one_of_the_chosen(tell: Tell, tmp_path: Path) -> None:
    run = _made(tmp_path / "run", ("input", "good", "like_good", "oracle"))
    code, output, _ = tell(run, "--restorer", "good", "--against", "input")
    assert code == 0
    assert "corrected for the 1 pair shown, of 3 in the run" in " ".join(output.split())
    found = json.loads(tell(run, "--restorer", "good", "--against", "input", "--json")[1])
    assert [(pair["restorer"], pair["against"]) for pair in found["pairs"]] == [("good", "input")]
    assert (
        found["pairs"] == json.loads(tell(run, "--restorer", "good,input", "--against", "input", "--json")[1])["pairs"]
    )
    _refused(tell(run, "--restorer", "good", "--against", "good"), "1 restorer to compare")
    _refused(tell(run, "--restorer", "good", "--against", "inputs"), "--against inputs", "did you mean 'input'?")
    _refused(tell(run, "--restorer", "good", "--against", "oracle"), "--against oracle", "is a control")


def test_of_namesakes_the_one_named_is_added(tell: Tell, tmp_path: Path) -> None:
    rows = [_row("tv", {"strength": 1.0}, "tv-a"), _row("tv", {"strength": 2.0}, "tv-b"), _row("input")]
    records = [_record(row, case, BASE[case] + i) for i, row in enumerate(rows) for case in CASES]
    run = _write(tmp_path / "run", rows, records)
    for name in ("tv-b", "tv (strength=2.0)"):
        found = json.loads(tell(run, "--json", "--restorer", "input", "--against", name)[1])
        assert {line["row"] for line in found["restorers"]} == {"input-1", "tv-b"}
        assert [pair["against"] for pair in found["pairs"]] == ["tv (strength=2.0)"]
    _refused(tell(run, "--restorer", "input", "--against", "tv"), "--against tv", "tv (strength=1.0)")


def test_two_runs_are_joined_and_the_first_one_counts(tell: Tell, tmp_path: Path) -> None:
    first = _made(tmp_path / "first", ("input",))
    second = _made(tmp_path / "second", ("input", "good"))
    code, output, errors = tell(first, second, "--json")
    assert (code, errors) == (0, "")
    assert [line["restorer"] for line in json.loads(output)["restorers"]] == ["good", "input"]
    assert json.loads(output)["notices"] == []
    changed = records_of(second)
    changed[0]["metrics"]["ssim"] += 0.01
    write_records(second, changed)
    again = json.loads(tell(first, second, "--json")[1])
    assert again["notices"] == ["input: the runs disagree on 1 cases; the first one counts"]
    assert again["pairs"] == json.loads(output)["pairs"]


def test_namesakes_are_told_apart_by_their_settings(tell: Tell, tmp_path: Path) -> None:
    rows = [_row("tv", {"strength": 1.0, "steps": 5}, "tv-a"), _row("tv", {"strength": 2.0, "steps": 5}, "tv-b")]
    records = [_record(row, case, BASE[case] + i) for i, row in enumerate(rows) for case in CASES]
    run = _write(tmp_path / "run", rows, records)
    names = [line["restorer"] for line in json.loads(tell(run, "--json")[1])["restorers"]]
    assert names == ["tv (strength=2.0)", "tv (strength=1.0)"]
    assert json.loads(tell(run, "--json", "--against", "tv-a")[1])["pairs"][0]["restorer"] == names[0]
    _refused(tell(run, "--against", "tv"), "--against tv", "tv (strength=1.0)")


def test_a_row_of_a_time_before_a_setting_is_named_by_its_id(tell: Tell, tmp_path: Path) -> None:
    rows = [_row("tv", {"strength": 1.0}, "tv-a"), _row("tv", {"strength": 1.0, "steps": 5}, "tv-b")]
    records = [_record(row, case, BASE[case] + i) for i, row in enumerate(rows) for case in CASES]
    run = _write(tmp_path / "run", rows, records)
    assert [line["restorer"] for line in json.loads(tell(run, "--json")[1])["restorers"]] == ["tv-b", "tv-a"]


def test_a_run_that_is_being_written_can_be_compared(tell: Tell, tmp_path: Path) -> None:
    run = _made(tmp_path / "run")
    with (run / "records.jsonl").open("a") as file:
        file.write('{"row": "input-1", "ca')
    before = (run / "records.jsonl").read_bytes()
    code, output, _ = tell(run)
    assert code == 0
    assert "last record is torn and left out" in output
    assert (run / "records.jsonl").read_bytes() == before


def test_what_does_not_fit_is_one_line(tell: Tell, tmp_path: Path) -> None:
    run = _made(tmp_path / "run")
    _refused(tell(run, "--metric", "ssin"), "did you mean 'ssim'?")
    _refused(tell(run, "--metric", "lpips"), "'lpips' is not recorded", str(run))
    _refused(tell(run, "--against", "inputs"), "--against inputs", "did you mean 'input'?")
    _refused(tell(run, "--against", "oracle"), "is a control")
    _refused(tell(run, "--restorer", "input,goof"), "--restorer goof", "did you mean 'good'?")
    _refused(tell(run, "--restorer", "input,oracle"), "oracle", "is a control")
    _refused(tell(run, "--restorer", "input"), "1 restorer to compare")
    _refused(tell(run, "--restorer", ","), "--restorer is empty")
    _refused(tell(run, "--plot", tmp_path / "plot.txt"), "ends in .png")
    _refused(tell(run, run, run), "3 run folders: give one or two")
    _refused(tell(_made(tmp_path / "alone", ("input", "oracle"))), "1 restorer to compare")
    other = _made(tmp_path / "other", protocol_digest="bbbbbbbb33")
    _refused(tell(run, other), "protocol digest", "aaaaaaaa", "bbbbbbbb")
    _refused(tell(run, _made(tmp_path / "data", data_digest="eeeeeeee44")), "data digest", "dddddddd", "eeeeeeee")


def test_damaged_folders_are_one_line(tell: Tell, tmp_path: Path) -> None:
    _refused(tell(tmp_path / "nowhere"), "not a run folder", "run.json")
    rows = [_row("input"), _row("good")]
    _refused(tell(_write(tmp_path / "empty", rows, [])), "holds no record yet")
    bare = _write(tmp_path / "bare", rows, [])
    (bare / "records.jsonl").unlink()
    _refused(tell(bare), "records.jsonl: cannot be read")
    _refused(tell(_made(tmp_path / "newer", schema=2)), "schema 2")
    for number, content in enumerate(("{}", "[]", "nonsense", '{"schema": 1, "rows": [{}]}', "\xff")):
        damaged = _made(tmp_path / f"damaged{number}")
        (damaged / "run.json").write_bytes(content.encode("latin-1"))
        _refused(tell(damaged), "run.json", "not a run description")
    torn = _made(tmp_path / "torn")
    lines = (torn / "records.jsonl").read_text().splitlines()
    (torn / "records.jsonl").write_text("\n".join([lines[0], lines[1][:40], *lines[2:], ""]))
    _refused(tell(torn), "line 2 is not a record")
    (torn / "records.jsonl").write_text("\n".join([lines[0], '{"row": "x", "case": "y", "status": "ok"}', ""]))
    _refused(tell(torn), "fits no row of run.json")
    for number, value in enumerate(("NaN", '"high"', "true")):
        odd = _made(tmp_path / f"odd{number}")
        edited = [json.loads(line) for line in lines]
        edited[0]["metrics"]["ssim"] = "here"
        text = "".join(json.dumps(record) + "\n" for record in edited).replace('"here"', value)
        (odd / "records.jsonl").write_text(text)
        _refused(tell(odd), "input on c00", "ssim is recorded as")
    moved = [json.loads(line) for line in lines]
    moved[0]["group"] = "elsewhere"
    _refused(tell(_write(tmp_path / "moved", [_row(n) for n in SHIFTS], moved)), "case c00 is of group")


def test_no_case_in_common_is_one_line(tell: Tell, tmp_path: Path) -> None:
    rows = [_row("input"), _row("good")]
    records = [_record(rows[i % 2], case, BASE[case]) for i, case in enumerate(CASES)]
    run = _write(tmp_path / "run", rows, records)
    _refused(tell(run), "no restorer has values of ssim on enough of the 12 cases", "input 6, good 6")
    _refused(tell(run, "--restorer", "input,good"), "no case has a value of ssim from all 2 restorers")
    void = [_record(row, case, BASE[case] if row is rows[0] else None) for row in rows for case in CASES]
    _refused(tell(_write(tmp_path / "void", rows, void)), "only input has values of ssim")


def test_a_restorers_name_is_shown_as_it_is(tell: Tell, tmp_path: Path) -> None:
    rows = [_row("[red]odd[/]"), _row("input")]
    records = [_record(row, case, BASE[case] + i) for i, row in enumerate(rows) for case in CASES]
    assert "[red]odd[/]" in tell(_write(tmp_path / "run", rows, records))[1]


def test_margins_are_by_metric_and_unit() -> None:
    assert [equivalence_margin(spec) for spec in (PSNR, SSIM, SSIM_MATCHED)] == [0.1, 0.005, 0.005]
    assert equivalence_margin(SPECS.cd_error) == 0.05
    assert equivalence_margin(SPECS.cd_error_nm) is None
    assert equivalence_margin(SPECS.lost_rows) is None
