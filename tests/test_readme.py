"""README and docs/semfm.md keep their word: the code they show runs as it stands there."""

import json
import re
from pathlib import Path
from typing import Any

from command_lines import call

from sembench.checks import check_restorer

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def test_the_restorer_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    (tmp_path / "mine.py").write_text(code[1], encoding="utf-8")
    results = check_restorer(f"{tmp_path / 'mine.py'}:Unsharp")
    assert [result for result in results if result.outcome == "failed"] == []
    command = "run --restorer mine.py:Unsharp,input --data phantom --limit 1 --set Unsharp.amount=0.5 --json"
    done = call(tmp_path, *command.split())
    assert done.returncode == 0, done.stderr
    rows = {row["restorer"]: row["metrics"] for row in json.loads(done.stdout)["rows"]}
    assert rows["Unsharp"]["psnr_matched"]["mean"] > rows["input"]["psnr_matched"]["mean"]


def test_the_head_that_the_docs_show_reads_the_tokens() -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "semfm.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    assert names["classes"].shape == (1, 14, 20, 3)
