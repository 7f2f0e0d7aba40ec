"""The plot is SVG that parses, with a line for each run; what it shows is checked by its coordinates."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from embedserve.loadtest.plot import HEIGHT, WIDTH, latency_html, latency_svg

SVG = "{http://www.w3.org/2000/svg}"


def lines_of(svg: str) -> list[list[tuple[float, float]]]:
    """The points of each run's line."""
    found = ET.fromstring(svg).findall(f".//{SVG}polyline")
    return [
        [(float(x), float(y)) for x, y in (point.split(",") for point in line.attrib["points"].split())]
        for line in found
    ]


def texts_of(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("runs", [1, 3, 9])
def test_there_is_a_line_and_a_name_for_each_run(runs: int) -> None:
    random = np.random.default_rng(0)
    svg = latency_svg([(f"{run} clients", random.exponential(10.0, 500)) for run in range(runs)], "Latency")
    assert len(lines_of(svg)) == runs
    assert [text for text in texts_of(svg) if text.endswith(" clients")] == [f"{run} clients" for run in range(runs)]


def test_lines_rise_to_the_right_within_the_picture() -> None:
    [line] = lines_of(latency_svg([("a", np.random.default_rng(0).lognormal(2, 2, 3000))], "Latency"))
    assert line == sorted(line, key=lambda point: (point[0], -point[1]))
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in line)


def test_equal_latencies_are_a_level_line_and_a_decade_is_everywhere_equally_high() -> None:
    svg = latency_svg([(f"{ms} ms", np.full(100, float(ms))) for ms in (1, 10, 100)], "Latency")
    [one], [ten], [hundred] = [{y for _, y in line} for line in lines_of(svg)]
    assert one - ten == pytest.approx(ten - hundred, abs=0.2)
    assert one > ten > hundred, "slower is higher up"


def test_a_longer_run_reaches_further_to_the_slow_calls() -> None:
    short, long = lines_of(latency_svg([("short", np.ones(100)), ("long", np.ones(10_000))], "Latency"))
    assert long[-1][0] > short[-1][0]
    assert {"99 %", "99.9 %", "99.99 %"} <= set(texts_of(latency_svg([("long", np.ones(10_000))], "Latency")))


def test_names_may_have_any_characters() -> None:
    svg = latency_svg([('<b> & "c"', np.ones(10))], 'Latency of <x> & "y"', "<z>")
    assert {'<b> & "c"', 'Latency of <x> & "y"', "<z>"} <= set(texts_of(svg))


def test_labels_of_lines_that_end_together_do_not_overlap() -> None:
    root = ET.fromstring(latency_svg([(f"run {run}", np.ones(10)) for run in range(5)], "Latency"))
    heights = sorted(
        float(text.attrib["y"]) for text in root.iter(f"{SVG}text") if "".join(text.itertext()).startswith("run ")
    )
    assert min(np.diff(heights)) >= 15
    assert heights[-1] < HEIGHT


@pytest.mark.parametrize("values", [[], [0.0], [0.0, 1e7], [5.0]])
def test_runs_with_few_or_extreme_calls_can_be_drawn(values: list[float]) -> None:
    assert len(lines_of(latency_svg([("a", np.array(values))], "Latency"))) == (1 if values else 0)


def test_where_no_call_was_answered_the_plot_says_so() -> None:
    assert "no call was answered" in texts_of(latency_svg([("a", np.array([]))], "Latency"))


def test_the_page_holds_the_plot_and_the_table() -> None:
    svg = latency_svg([("1 client", np.ones(10))], "Latency")
    page = latency_html(svg, "Latency", [["", "images/s"], ["1 client", "<10>"]], ["Most: 10 & no more."])
    assert svg in page
    assert "<td>&lt;10&gt;</td>" in page
    assert "Most: 10 &amp; no more." in page
