"""Figures, table and verdicts of constructed runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from embedserve.errors import Overloaded
from embedserve.loadtest import NOT_SENT, Measurements, Reply
from embedserve.loadtest.report import Report, Run, amount


def measured(
    answered: int, *, latency_ms: float = 10.0, failed: int = 0, not_sent: int = 0, cpu_share: float = 0.1
) -> Measurements:
    """Ten seconds with evenly spaced calls; the answered ones first."""
    calls = Measurements(warmup_s=1, seconds=10)
    total = answered + failed + not_sent
    for number in range(total):
        due_s = 1 + 10 * number / total
        times = {"due_s": due_s, "sent_s": due_s, "done_s": due_s + latency_ms / 1000}
        if number < answered:
            calls.add(**times, outcome=Reply(server_ms=(1, 2, 3, 0, 6)))
        elif number < answered + failed:
            calls.add(**times, outcome=Overloaded("the queue is full"))
        else:
            calls.add(due_s=due_s, sent_s=due_s, done_s=due_s, outcome=NOT_SENT)
    calls.client_cpu_s = cpu_share * 10
    return calls


def report(*runs: Run, **options: Any) -> Report:
    server = {"address": "there:50051", "provider": "CPU", "encoder": {"name": "photos"}}
    return Report(runs=runs, what="embed", inputs="3 images", server=server, options={}, **options)


def closed(clients: int, calls: Measurements) -> Run:
    return Run(measured=calls, clients=clients)


def open_at(rate: float, calls: Measurements, share: float | None = None) -> Run:
    return Run(measured=calls, rate=rate, of_capacity=share)


def test_the_document_has_everything_that_was_measured_and_is_json() -> None:
    runs = closed(4, measured(1000, latency_ms=12)), open_at(150, measured(900, failed=500, not_sent=100), 1.5)
    document = json.loads(json.dumps(report(*runs).document(["embedserve", "bench"]), allow_nan=False))
    assert document.keys() == {
        *("kind", "format", "date", "command", "client", "server", "what", "inputs", "counted", "options"),
        *("runs", "verdicts", "allowed", "failed", "ok"),
    }
    first, second = document["runs"]
    assert first.keys() == second.keys()
    assert first["latency_ms"] == {
        **dict.fromkeys(["p50", "p90", "p99", "p99_9", "max", "mean"], 12.0),
        "histogram": [[12.5893, 1000]],
    }
    assert (first["clients"], first["rate_asked_per_s"], first["offered_images_per_s"]) == (4, None, None)
    assert (second["clients"], second["rate_asked_per_s"], second["offered_images_per_s"]) == (None, 150, 150)
    assert first["server_median_ms"] == {"decode": 1, "queue": 2, "inference": 3, "store": 0, "total": 6}
    assert second["errors"]["OVERLOADED"]["calls"] == 500
    assert second["errors"]["OVERLOADED"]["message"] == "the queue is full"
    assert second["errors"][NOT_SENT]["calls"] == 100
    assert document["failed"] == {"OVERLOADED": 500, NOT_SENT: 100}
    assert document["ok"] is False


def test_failures_that_are_accepted_are_still_shown() -> None:
    made = report(closed(1, measured(10, failed=5)), allowed={"OVERLOADED"})
    assert made.not_allowed() == {}
    assert [row[1:3] for row in made.error_table()[1]] == [["OVERLOADED", "5"]]


def test_a_run_without_any_answer_can_be_reported() -> None:
    made = report(closed(1, measured(0, failed=5)))
    json.dumps(made.document([]), allow_nan=False)
    assert made.table()[1][0][0] == "1 client"
    assert made.verdicts() == ["No call was answered with 1 client."]
    assert "no call was answered" in made.svg()


def test_percentiles_that_too_few_calls_stand_behind_are_not_shown() -> None:
    head, [row] = report(closed(1, measured(50))).table()
    shown = dict(zip(head, row, strict=True))
    assert (shown["p50 ms"], shown["p90 ms"], shown["p99 ms"], shown["max ms"]) == ("10.0", "10.0", "–", "10.0")


@pytest.mark.parametrize(("calls", "column", "shown"), [(99, "p99 ms", "–"), (100, "p99 ms", "10.0")])
def test_p99_needs_a_hundred_calls(calls: int, column: str, shown: str) -> None:
    head, [row] = report(closed(1, measured(calls))).table()
    assert row[head.index(column)] == shown


def test_the_verdict_names_the_most_and_the_fewest_clients_that_nearly_reach_it() -> None:
    runs = closed(1, measured(400)), closed(4, measured(980)), closed(16, measured(1000, latency_ms=40))
    assert report(*runs).verdicts() == [
        "Most: 99.6 images/s with 16 clients, p99 40.0 ms. 4 clients already give 95 % of it, p99 10.0 ms."
    ]


def test_the_verdict_says_when_more_clients_might_give_more() -> None:
    runs = closed(1, measured(400)), closed(4, measured(900))
    assert report(*runs).verdicts() == ["Most: 90.0 images/s with 4 clients, p99 10.0 ms. More clients may give more."]


def test_the_verdict_says_at_which_rates_the_server_kept_up() -> None:
    good, bad = report(open_at(50, measured(500), 0.5), open_at(120, measured(800, failed=400))).verdicts()
    assert good == "At 50.0/s (50%) the server kept up: p50 10.0 ms, p99 10.0 ms."
    assert bad == (
        "At 120/s it did not keep up: 80.0 of 120 images/s were answered, p99 10.0 ms; 33.3% of the calls failed."
    )


def test_a_busy_client_is_named_as_what_was_measured() -> None:
    *_, said = report(closed(1, measured(500)), closed(4, measured(600, cpu_share=0.85))).verdicts()
    assert "4 clients (85%)" in said
    assert "1 client (" not in said
    assert report(closed(1, measured(500, cpu_share=0.79))).verdicts()[1:] == []


def test_sharing_a_machine_is_mentioned() -> None:
    assert "one machine" in report(closed(1, measured(500)), same_machine=True).verdicts()[-1]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.1234, "0.12"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346")]
)
def test_amounts_have_three_digits(value: float | None, text: str) -> None:
    assert amount(value) == text
