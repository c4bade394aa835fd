"""Bars and tables for benchmarks/metrology.py, from the records of what was measured."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from metrology_measured import CONTACT_CONTRASTS, CONTRASTS, DUTIES, FAINT, RIM_LENGTHS, RIMS, Array, Record, rms

ROUGHNESS_MUST = {8.0: (1.0, 3.0), 4.0: (1.5, 4.0), 2.7: (3.0, 7.0), 2.0: (5.0, 13.0)}
ROUGHNESS_AIM = {8.0: (0.5, 1.5), 4.0: (1.0, 2.0), 2.7: (2.0, 3.5), 2.0: (4.0, 6.5)}
REAL_PITCH_NM = {"test01": 25.63, "test02": 25.62, "test03": 25.06}
PUBLISHED_CD_PX = {"test01": 15.136, "test02": 15.049, "test03": 15.389}
"""Average CDs in the screenshot of SMILE2's documentation (Mochi, Paul Scherrer Institut)."""


@dataclass(frozen=True)
class Row:
    """One bar: the value seen must not exceed `must`, and should not exceed `aim`."""

    quantity: str
    unit: str
    seen: float
    must: float | None = None
    aim: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.must is not None and not self.seen <= self.must:
            return "MISSED"
        if self.aim is not None and not self.seen <= self.aim:
            return "ok, aim missed" if self.must is not None else "aim missed"
        return "ok" if self.must is not None or self.aim is not None else ""

    def cells(self) -> list[str]:
        values = ["" if v is None else f"{v:.3g}" for v in (self.must, self.aim)]
        return [self.quantity, self.unit, *values, f"{self.seen:.3g}", self.verdict, self.note]


def largest(values: Sequence[float] | Array) -> float:
    """Largest magnitude; infinite where nothing was seen."""
    array = np.abs(np.asarray(values, np.float64))
    return float(array.max()) if array.size else math.inf


class Seen:
    """Records of one group, to be asked for the values of some of them."""

    def __init__(self, records: Sequence[Record], group: str) -> None:
        self.records = [record for record in records if record["group"] == group]

    def where(self, **wanted: Any) -> list[Record]:
        """Those with these labels; a tuple allows several values."""
        return [
            record
            for record in self.records
            if all(record[key] in (value if isinstance(value, tuple) else (value,)) for key, value in wanted.items())
        ]

    def values(self, name: str, **wanted: Any) -> Array:
        """A number of each that was measured; infinite where it was withheld."""
        found = [record for record in self.where(**wanted) if not record["refused"]]
        return np.array([math.inf if record.get(name) is None else record[name] for record in found])

    def worst(self, names: Sequence[str], **wanted: Any) -> float:
        """The largest magnitude of several numbers."""
        return max(largest(self.values(name, **wanted)) for name in names)


def white_rows(seen: Seen) -> Iterator[Row]:
    """Lines with white noise."""
    noisy = CONTRASTS[1:]
    for text, contrasts, must, aim in (
        ("C 4, 8 and no noise", (math.inf, 8.0, 4.0), 0.04, 0.02),
        ("C >= 2", CONTRASTS, 0.10, 0.05),
    ):
        yield Row(f"CD, duty 1/2, {text}: worst", "px", seen.worst(["cd"], duty=0.5, C=contrasts), must, aim)
        means = [abs(seen.values("cd", duty=0.5, C=contrast).mean()) for contrast in contrasts]
        yield Row(f"CD, duty 1/2, {text}: mean bias", "px", max(means), None, 0.01, "worst C")
    others = (0.35, 0.65)
    yield Row("CD, duty 0.35 and 0.65, C >= 2: worst", "px", seen.worst(["cd"], duty=others, C=CONTRASTS), 0.15, 0.05)
    both = ["lwr", "ler", "lwr_raw", "ler_raw"]
    quiet = seen.worst(both, duty=0.5, C=math.inf), seen.worst(both, duty=others, C=math.inf)
    yield Row("LWR, LER, no noise, duty 1/2: worst", "%", quiet[0], 1.0, 0.5, "raw and unbiased")
    yield Row("LWR, LER, no noise, duty 0.35 and 0.65: worst", "%", quiet[1], 3.0, 1.0, "raw and unbiased")
    for side, duties, text in ((0, 0.5, "duty 1/2"), (1, others, "duty 0.35 and 0.65")):
        for contrast in noisy:
            worst = [seen.worst([name], duty=duties, C=contrast) for name in ("lwr", "ler")]
            yield Row(
                f"unbiased LWR, LER, {text}, C {contrast:g}: worst",
                "%",
                max(worst),
                ROUGHNESS_MUST[contrast][side],
                ROUGHNESS_AIM[contrast][side],
                f"LWR {worst[0]:.2f}, LER {worst[1]:.2f}",
            )
    medians = [
        abs(float(np.median(seen.values(name, duty=duty, C=contrast))))
        for name in ("lwr", "ler")
        for duty in DUTIES
        for contrast in CONTRASTS
    ]
    yield Row(
        "unbiased LWR, LER, all duties, C >= 2: median over scenes", "%", max(medians), 2.0, None, "worst C, duty"
    )
    for name, unit, must, aim in (("sigma", "%", 3, 2), ("xi", "%", 8, 5), ("hurst", "", 0.08, 0.05)):
        medians = [float(np.median(np.abs(seen.values(f"edge_{name}", C=contrast)))) for contrast in CONTRASTS]
        bounds = [float(np.median(seen.values(f"{name}_attainable", C=contrast))) for contrast in CONTRASTS]
        worst = int(np.argmax(medians))
        note = f"at C {contrast_name(CONTRASTS[worst])}; Cramer-Rao bound {bounds[worst]:.2g} (C 2: {bounds[-1]:.2g})"
        yield Row(f"model of the edges, C >= 2: {name}, median over scenes", unit, medians[worst], must, aim, note)
    yield Row("pitch, C >= 2: worst", "px", seen.worst(["pitch"]), 0.05)
    yield Row("tilt, C >= 2: worst", "deg", seen.worst(["tilt"]), 0.03)
    refused = [record for record in seen.records if record["refused"]]
    yield Row(f"lines refused by mistake, of {len(seen.records)}", "", len(refused), 0)


def correlated_rows(seen: Seen) -> Iterator[Row]:
    """Noise correlated across the lines."""
    for contrast in (8.0, 4.0):
        cd = seen.values("cd", C=contrast)
        note = (
            f"worst scene {largest(cd):.3f}, noise alone gives it {seen.values('cd_error', C=contrast).max():.3f} rms"
        )
        yield Row(f"noise correlated along x, C {contrast:g}: CD, mean bias", "px", abs(cd.mean()), 0.03, None, note)
    for contrast, must, aim in ((8.0, 1.5, None), (4.0, 1.5, None), (2.7, None, 3.0)):
        text = f"noise correlated along x, C {contrast:g}: unbiased LWR, rms"
        withheld = int(np.isinf(seen.values("lwr", C=contrast)).sum())
        note = f"withheld in {withheld}, rms without them {_finite_rms(seen.values('lwr', C=contrast)):.2f}"
        yield Row(text, "%", rms(seen.values("lwr", C=contrast)), must, aim, note if withheld else "")


def _finite_rms(values: Array) -> float:
    return rms(values[np.isfinite(values)])


def rims_rows(seen: Seen) -> Iterator[Row]:
    """What the level mode for rims gains."""
    for rim in RIMS:
        for length in RIM_LENGTHS:
            offsets = [
                abs(float(seen.values("cd", rim=rim, length=length, C=math.inf, level=level).mean()))
                for level in ("plateau", "rim")
            ]
            yield Row(
                f"rim {rim:g}, {length:g} px: CD offset in rim mode, mean",
                "px",
                offsets[1],
                offsets[0],
                None,
                f"plateau mode {offsets[0]:.2f}; refused "
                f"{sum(bool(r['refused']) for r in seen.where(rim=rim, length=length, level='rim'))} in rim mode",
            )


def contacts_rows(seen: Seen) -> Iterator[Row]:
    """Holes and pillars."""
    refused = [record for record in seen.records if record["refused"]]
    yield Row(f"contacts refused by mistake, of {len(seen.records)}", "", len(refused), 0)
    for contrast in CONTACT_CONTRASTS:
        name = f"C {contrast:g}" if math.isfinite(contrast) else "no noise"
        diameter, lcdu = seen.values("diameter", C=contrast), seen.values("lcdu", C=contrast)
        yield Row(
            f"contacts, {name}: mean diameter, worst", "px", largest(diameter), 0.05, None, f"rms {rms(diameter):.3f}"
        )
        note = f"rms {rms(lcdu):.2f}; raw {largest(seen.values('lcdu_raw', C=contrast)):.1f} at worst"
        yield Row(f"contacts, {name}: unbiased LCDU, worst", "%", largest(lcdu), 3.0, None, note)
    measured = [record for record in seen.records if not record["refused"]]
    missing = max((r["complete"] - r["count"] for r in measured), default=math.inf)
    strange = sum(r["strange"] for r in measured)
    yield Row(
        "contacts measured that are none", "", strange, 0, None, f"at most {missing} complete ones left out a scene"
    )


def refusals_rows(seen: Seen) -> Iterator[Row]:
    """Images without lines."""
    measured = [record["name"] for record in seen.records if not record["refused"]]
    note = ", ".join(measured[:4])
    yield Row(f"images without lines that were measured, of {len(seen.records)}", "", len(measured), 0, None, note)
    fastest = 1e3 * float(np.median([record["seconds"] for record in seen.records]))
    yield Row("time of a refusal, median", "ms", fastest)


def real_rows(seen: Seen) -> Iterator[Row]:
    """EUV lines."""
    for record in seen.records:
        name = record["name"]
        apart = abs(record["pitch_nm"] - REAL_PITCH_NM[name])
        yield Row(
            f"{name}: pitch from {REAL_PITCH_NM[name]} nm", "nm", apart, 0.05, None, f"{record['pitch_nm']:.3f} nm"
        )
    for record in seen.records:
        name = record["name"]
        apart = abs(record["cd_smile2"] - PUBLISHED_CD_PX[name])
        yield Row(
            f"{name}: CD (smile2) from {PUBLISHED_CD_PX[name]} px",
            "px",
            apart,
            0.15,
            0.05,
            f"{record['cd_smile2']:.3f} px",
        )


def speed_rows(seen: Seen) -> Iterator[Row]:
    """Against a plain loop."""
    for record in seen.records:
        yield Row("time, 1280 x 895, about 50 lines, with fits", "s", record["seconds"], 1.0, 0.1)
        yield Row(
            "the same over that of a plain loop",
            "",
            1 / record["ratio"],
            1 / 15,
            1 / 50,
            f"{record['ratio']:.0f} times",
        )


def properties_rows(seen: Seen) -> Iterator[Row]:
    """What must hold on any image."""
    for name, text, must in (
        ("parseval", "Parseval: sum(PSD) df against the variance, relative", 1e-9),
        ("turned", "turned by 90 degrees: largest relative change", 1e-6),
        ("mirrored", "mirrored: largest relative change", 1e-6),
        ("flipped", "upside down: largest relative change", 1e-6),
        ("scaled", "gray levels scaled and shifted: largest relative change", 1e-6),
        ("half", "LWR of half the rows, in standard errors", 3.0),
        ("white_edges", "width of white edges from sqrt 2 sigma, in standard errors", 4.0),
    ):
        yield Row(text, "", max(record[name] for record in seen.records), must)


ROWS: dict[str, Callable[[Seen], Iterator[Row]]] = {
    "white": white_rows,
    "correlated": correlated_rows,
    "rims": rims_rows,
    "contacts": contacts_rows,
    "properties": properties_rows,
    "refusals": refusals_rows,
    "real": real_rows,
    "speed": speed_rows,
}

LINE_HEADER = (
    "| {} | CD bias mean / rms / max px | edge rms px | LWR raw median % | LWR floor rms % | "
    "LWR unbiased median / rms / max % | LER raw median % | LER unbiased median / rms / max % | "
    "withheld | lost | refused |"
)


def contrast_name(contrast: float) -> str:
    """A contrast-to-noise ratio in a table."""
    return "inf" if math.isinf(contrast) else f"{contrast:g}"


def line_cells(seen: Seen, **wanted: Any) -> str:
    """One row of a table of line measurements."""
    cd, lwr, ler = (seen.values(name, **wanted) for name in ("cd", "lwr", "ler"))
    refused = sum(bool(record["refused"]) for record in seen.where(**wanted))
    if not cd.size:
        return f"| | | | | | | | | | {refused} |"
    withheld = int(np.isinf(lwr).sum())
    cells = [
        f"{cd.mean():+.3f} / {rms(cd):.3f} / {largest(cd):.3f}",
        f"{np.median(seen.values('edge_rms', **wanted)):.3f}",
        f"{np.median(seen.values('lwr_raw', **wanted)):+.1f}",
        f"{rms(seen.values('lwr_floor', **wanted)):.2f}",
        _three(lwr),
        f"{np.median(seen.values('ler_raw', **wanted)):+.1f}",
        _three(ler),
        f"{withheld}",
        f"{seen.values('lost', **wanted).mean():.4f}",
        f"{refused}",
    ]
    return "| " + " | ".join(cells) + " |"


def _three(values: Array) -> str:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "withheld"
    return f"{np.median(finite):+.2f} / {rms(finite):.2f} / {largest(finite):.2f}"


def _table(title: str, *labels: str) -> list[str]:
    header = LINE_HEADER.format(" | ".join(labels))
    return ["", f"## {title}", "", header, "|" + "---|" * (header.count("|") - 1)]


def tables(records: Sequence[Record]) -> Iterator[str]:
    """Lines of Markdown: what lies behind the bars."""
    white = Seen(records, "white")
    if white.records:
        yield from _table("Lines, white noise", "duty", "C")
        for duty in DUTIES:
            for contrast in CONTRASTS:
                yield f"| {duty:g} | {contrast_name(contrast)} {line_cells(white, duty=duty, C=contrast)}"
        yield from (
            "",
            "## Roughness model against what the edges were drawn from: median / 90th percentile of errors",
            "",
        )
        yield "| duty | C | edges: sigma % | edges: xi % | edges: H | widths: sigma % | widths: xi % | widths: H |"
        yield "|---|---|---|---|---|---|---|---|"
        for duty in DUTIES:
            for contrast in CONTRASTS:
                cells = []
                for name in ("edge_sigma", "edge_xi", "edge_hurst", "width_sigma", "width_xi", "width_hurst"):
                    sizes = np.abs(white.values(name, duty=duty, C=contrast))
                    digits = 2 if name.endswith("hurst") else 1
                    tenth = float(np.sort(sizes)[math.ceil(0.9 * sizes.size) - 1]) if sizes.size else math.nan
                    cells.append(f"{np.median(sizes):.{digits}f} / {tenth:.{digits}f}")
                yield f"| {duty:g} | {contrast_name(contrast)} | " + " | ".join(cells) + " |"
    for group, title, contrasts in (
        ("correlated", "Noise correlated across the lines (Gaussian, 1 px), duty 1/2", CONTRASTS[1:]),
        ("faint", "Low contrast, white noise, duty 1/2", FAINT),
    ):
        seen = Seen(records, group)
        if seen.records:
            yield from _table(title, "C")
            for contrast in contrasts:
                yield f"| {contrast_name(contrast)} {line_cells(seen, C=contrast)}"
    rims = Seen(records, "rims")
    if rims.records:
        yield from _table("Bright rims, duty 1/2, by the level that defines the edge", "rim", "length px", "C", "level")
        for rim in RIMS:
            for length in RIM_LENGTHS:
                for contrast in (math.inf, 4.0):
                    for level in ("plateau", "rim"):
                        cells = line_cells(rims, rim=rim, length=length, C=contrast, level=level)
                        yield f"| {rim:g} | {length:g} | {contrast_name(contrast)} | {level} {cells}"
    yield from _contact_table(Seen(records, "contacts"))
    yield from _real_table(Seen(records, "real"))


def _contact_table(seen: Seen) -> Iterator[str]:
    if not seen.records:
        return
    yield from ("", "## Contact holes and pillars", "")
    yield (
        "| kind | C | diameter bias mean / rms / max px | one diameter rms px | CD x, y bias rms px | "
        "LCDU raw median % | LCDU unbiased rms / max % | CER raw median % | CER unbiased median % |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for pillars in (False, True):
        for contrast in CONTACT_CONTRASTS:
            chosen = {"pillars": pillars, "C": contrast}
            diameter, lcdu = seen.values("diameter", **chosen), seen.values("lcdu", **chosen)
            if diameter.size:
                yield (
                    f"| {'pillars' if pillars else 'holes'} | {contrast_name(contrast)} "
                    f"| {diameter.mean():+.3f} / {rms(diameter):.3f} / {largest(diameter):.3f} "
                    f"| {rms(seen.values('diameter_rms', **chosen)):.3f} "
                    f"| {rms(seen.values('cd_x', **chosen)):.3f}, {rms(seen.values('cd_y', **chosen)):.3f} "
                    f"| {np.median(seen.values('lcdu_raw', **chosen)):+.1f} | {rms(lcdu):.2f} / {largest(lcdu):.2f} "
                    f"| {np.median(seen.values('cer_raw', **chosen)):+.1f} "
                    f"| {np.median(seen.values('cer', **chosen)):+.1f} |"
                )


def _real_table(seen: Seen) -> Iterator[str]:
    if not seen.records:
        return
    yield from ("", "## Real EUV lines", "")
    yield (
        "| image | lines | pitch nm | CD 50 % px | CD smile2 px | its level | C | LWR raw / unbiased px | "
        "LER raw / unbiased px | xi px | H | flags |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for r in seen.records:
        yield (
            f"| {r['name']} | {r['lines']} | {r['pitch_nm']:.3f} | {r['cd']:.2f} | {r['cd_smile2']:.3f} "
            f"| {r['level']:.3f} | {r['C']:.1f} | {r['lwr_raw']:.2f} / {_number(r['lwr'])} "
            f"| {r['ler_raw']:.2f} / {_number(r['ler'])} "
            f"| {_number(r['xi'])} | {_number(r['hurst'])} | {', '.join(r['flags'])} |"
        )


def _number(value: float | None) -> str:
    return "withheld" if value is None else f"{value:.2f}"


def bars(rows: Sequence[Row]) -> Iterator[str]:
    """The bars as lines of Markdown."""
    yield "| quantity | unit | must | aim | seen | | |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        yield "| " + " | ".join(row.cells()) + " |"
