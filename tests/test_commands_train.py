"""`sembench train`: what it hands to the method, what it says, and what it refuses."""

from functools import partial
from pathlib import Path

import command_lines
import pytest

from sembench.commands import app
from sembench.commands.train import _duration, _Progress
from sembench.errors import CheckError, InputError

invoke = partial(command_lines.invoke, app, "train")

PLUGIN = '''
import json
from pathlib import Path
from sembench.errors import CheckError
from sembench.restorer import Restorer


class Learner(Restorer):
    """A method that can be pretrained."""

    def restore(self, image, /):
        return image

    @classmethod
    def pretrain(cls, *, listener, config, out, **request):
        if config.name == "fails.toml":
            raise CheckError("loss not finite")
        listener.notice("stage [1] starts")
        for step in (1, 2):
            listener.step(step, 2, {"loss": 0.5}, {"images_per_second": 8.0, "seconds_left": 3700.0, "waiting": 0.25})
        out.mkdir()
        (out / "request.json").write_text(json.dumps({**request, "config": str(config)}))
        return out / "best.json"


class Fixed(Restorer):
    """A method that cannot."""

    def restore(self, image, /):
        return image
'''


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    path = tmp_path / "learner.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return str(path)


def test_hands_over_what_was_asked(plugin, tmp_path):
    import json

    out = tmp_path / "out"
    done = invoke(
        *(f"{plugin}:Learner", "--stage", "2", "--recipe", "shipped", "--data", "semcorpus", "--out", str(out)),
        *("--minutes", "1.5", "--device", "cpu", "--fresh", "--threads", "2"),
    )
    assert done.exit_code == 0, done.output
    assert json.loads((out / "request.json").read_text()) == {
        "stage": 2,
        "config": "shipped",
        "data": "semcorpus",
        "minutes": 1.5,
        "device": "cpu",
        "threads": 2,
        "fresh": True,
    }
    assert "stage [1] starts" in done.output
    assert "written: " in done.output


def test_plain_lines_come_every_ten_seconds(monkeypatch, capsys):
    import time

    from rich.console import Console

    clock = iter([0.0, 4.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with _Progress(Console(force_terminal=False, width=200), "stage 1") as listener:
        for step in (1, 2, 3):
            speed = {"images_per_second": 8.0, "seconds_left": 3700.0, "waiting": 0.25}
            listener.step(step, 9, {"loss": 0.5}, speed)
    assert capsys.readouterr().out == (
        "stage 1: 2 of 9 (loss 0.5000, 8.0 images/s, 1 h 01 min left, 25 % waiting for data)\n"
    )


def test_durations_are_read_at_a_glance():
    assert [_duration(seconds) for seconds in (5.4, 65, 3600 * 3 + 61)] == ["0 min 05 s", "1 min 05 s", "3 h 01 min"]


def test_refuses_what_cannot_be_pretrained(plugin, tmp_path):
    done = invoke(f"{plugin}:Fixed", "--stage", "1", "--recipe", "shipped")
    assert isinstance(done.exception, InputError)
    assert "cannot be pretrained" in str(done.exception)
    done = invoke(f"{plugin}:Learner", "--stage", "1", "--recipe", "shipped", "--minutes", "0")
    assert isinstance(done.exception, InputError)
    assert "--minutes is 0" in str(done.exception)
    assert invoke(f"{plugin}:Learner", "--stage", "4", "--recipe", "shipped").exit_code == 2
    assert invoke(f"{plugin}:Learner", "--stage", "1").exit_code == 2


def test_without_a_stage_all_of_the_recipe_is_asked_for(plugin, tmp_path):
    import json

    out = tmp_path / "out"
    assert invoke(f"{plugin}:Learner", "--recipe", "shipped", "--out", str(out)).exit_code == 0
    assert json.loads((out / "request.json").read_text())["stage"] is None


def test_only_the_first_process_tells_an_error(plugin, monkeypatch):
    arguments = (f"{plugin}:Learner", "--stage", "1", "--recipe", "fails.toml")
    assert isinstance(invoke(*arguments).exception, CheckError)
    monkeypatch.setenv("RANK", "1")
    done = invoke(*arguments)
    assert done.exit_code == CheckError.exit_code
    assert done.output == ""
