"""docs/cluster.md plans the paper's run on paper: its figures follow from the model and from one another."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")
PLAN = PAGE.partition("## The paper's run, planned")[2]
IMAGES, BATCH, BY_ONE = 125_000 * 400, 64, 32
STEPS = {1: IMAGES / BATCH, 2: IMAGES / 10 / BATCH, 3: IMAGES / BATCH}


def rows(first: str) -> dict[str, list[str]]:
    """The lines of the table whose header begins so, by their first cell."""
    lines = PLAN.partition(f"\n{first}")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: others for name, *others in cells}


def number(text: str) -> float:
    return float(text.replace(",", "").replace(" ", ""))


def test_the_model_has_the_parameters_told() -> None:
    torch = pytest.importorskip("torch")
    from restorers.semfm.model import CONFIGS, MaskedAutoencoder

    def millions(experts: int) -> tuple[str, str, str]:
        with torch.device("meta"):
            model = MaskedAutoencoder(replace(CONFIGS["large"], experts=experts))
        parts = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
        return tuple(f"{count / 1e6:.1f} M" for count in (*parts, sum(parts)))

    assert "{} encoder + {} decoder = {}".format(*millions(0)) in PLAN
    assert "{} + {} = {}".format(*millions(8)) in PLAN


def test_operations_memory_and_hours_follow_from_the_assumptions() -> None:
    encoder = 50 * 2 * 302.6e6 + 4 * 50**2 * 1024 * 24
    decoder = 197 * 2 * 25.9e6 + 4 * 197**2 * 512 * 8
    once, experts = encoder + decoder, 8 * 2 / 3 * 50 * 2 * 302.6e6
    told = [number(cells[0].split("·")[0]) for cells in rows("| part | operations |").values()]
    work = {1: 3 * once, 2: 3 * once + experts, 3: 4 * once}
    assert told == pytest.approx([part / 1e9 for part in (encoder, decoder, *work.values())], rel=0.005)
    total = sum(IMAGES * share * work[stage] for stage, share in ((1, 1), (2, 0.1), (3, 1)))
    assert f"= {total / 1e19:.1f} · 10¹⁹ operations" in PLAN

    memory = [number(cells[0]) for cells in rows("| what | GB |").values()]
    assert sum(memory[:-1]) == pytest.approx(memory[-1], abs=0.05)
    assert memory[0] == pytest.approx(1738.8e6 * 16 / 1e9, abs=0.05)

    steps = rows("| | stage 1 | stage 2 | stage 3 |")
    *parts, together = steps.values()
    for stage in (1, 2, 3):
        times = [number(cells[stage - 1]) for cells in parts]
        assert times[0] == pytest.approx(BY_ONE * work[stage] / (0.25 * 989e12) * 1e3, abs=0.6)
        assert sum(times) == pytest.approx(number(together[stage - 1]), abs=0.5)
    hours = 0.0
    for name, (count, took, images, tokens, patches) in rows("| | steps | hours").items():
        stage = int(name.split()[1])
        seconds = number(together[stage - 1]) / 1e3
        assert number(count) == STEPS[stage]
        assert number(took) == pytest.approx(STEPS[stage] * seconds / 3600, abs=0.05)
        assert [number(images), number(tokens), number(patches)] == pytest.approx(
            [BATCH / seconds * factor for factor in (1, 50, 196)], rel=0.005
        )
        hours += number(took)
    assert f"**On 2 GPUs: {hours:.0f} hours, {hours / 24:.1f} days.**" in PLAN


def test_64_gpus_and_checkpoints_too() -> None:
    inside, between = 2 * 7 / 8 * 7.0 / 450 * 1e3, 2 * 7 / 8 * 7.0 / 8 / 50 * 1e3
    assert f"{inside:.0f} ms, between nodes" in PLAN
    found = re.search(r"together (\d+) ms at 70 %", PLAN)
    assert found is not None
    assert float(found[1]) == pytest.approx((inside + between) / 0.7, abs=1)
    large = IMAGES / (BY_ONE * 64)
    assert f"{large:,.0f} steps in stages 1 and 3" in PLAN
    hours = large * (0.114 + 0.036 + 0.1 * 0.041) / 3600
    assert f"About {hours:.1f} hours" in PLAN
    state = 1738.8e6 * 12 / 1e9
    assert f"{state:.1f} GB, written by rank 0" in PLAN
