"""The tables that serve_peers.py prints, made from its document."""

from __future__ import annotations

from statistics import median
from typing import Any

LEGS = {
    "single": "16 clients, 1 image per call",
    "list": "4 clients, 16 images per call",
    "stream": "EmbedStream, 1 per message",
    "stream_list": "EmbedStream, 16 per message",
}


def print_throughput(document: dict[str, Any]) -> None:
    """One line for each server and kind of load."""
    bare = document["bare"]
    print(
        f"\nbare loop, {bare['threads']} threads × {bare['batch']}: {bare['images_per_s']:.1f} images/s"
        f" ({bare['images_per_s_min']:.1f}–{bare['images_per_s_max']:.1f}), {bare['cpu_ms_per_image']:.2f} CPU ms/image"
    )
    for key, title in LEGS.items():
        rows = {name: one for name, one in document["servers"].items() if key in one["legs"]}
        if not rows:
            continue
        line = f"\n{title:<30}{'images/s':>9}  {'of bare (min–max)':<19}{'by CPU':>7}"
        line += f"{'CPU ms/image: server':>22}{'client':>8}{'p50 / p99 ms':>16}{'others':>8}"
        print(f"{line}{'MB':>7}{'processes':>11}{'start s':>9}")
        for name, one in sorted(rows.items(), key=lambda row: -row[1]["legs"][key]["ratio"]):
            leg = one["legs"][key]
            ratios = leg["by_round"]["ratio"]
            of_bare = f"{leg['ratio']:.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            latency = "–" if key.startswith("stream") else f"{leg['p50_ms']:.0f} / {leg['p99_ms']:.0f}"
            others = f"{100 * leg['others_share']:.0f} %"
            print(
                f"{name:<30}{leg['images_per_s']:>9.1f}  {of_bare:<19}{leg['cpu_ratio']:>7.2f}"
                f"{leg['server_cpu_ms_per_image']:>22.2f}"
                f"{leg['client_cpu_ms_per_image']:>8.2f}{latency:>16}{others:>8}{one['memory_mb']:>7.0f}"
                f"{one['processes']:>11}{one['start_s']:>9.1f}"
            )
    print(flush=True)


def print_behaviour(results: dict[str, Any]) -> None:
    """One line for each server and setting."""
    print(f"\n{'':<26}{'good failed of 16':>18}{'burnt: CPU s = images':>23}{'p99 beside bulk':>22}", end="")
    print(f"{'goodput at 4×':>15}{'refusal ms':>12}{'lost at SIGTERM':>17}")
    for name, kinds in results.items():
        for kind, one in kinds.items():
            cells = behaviour_cells(one)
            label = name if kind == "best" else f"{name}, batches"
            print(f"{label:<26}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)))
    print(flush=True)


_WIDTHS = (18, 23, 22, 15, 12, 17)


def behaviour_cells(one: dict[str, Any]) -> list[str]:
    """The cells of a line of the behaviour table; – if not measured."""
    cells = ["–"] * 6
    if poison := one.get("poison"):
        failed = poison["failed"]
        cells[0] = f"{median(failed):g} ({min(failed)}–{max(failed)})"
    if cancel := one.get("cancel"):
        cells[1] = f"{cancel['burnt_cpu_s']:.2f} = {cancel['burnt_images']:.0f}"
    if fairness := one.get("fairness"):
        cells[2] = f"{fairness['beside_p99_ms']:.0f} ms, {fairness['ratio']:.1f}×"
    if overload := one.get("overload"):
        cells[3] = f"{overload['goodput_ratio']:.2f}"
        cells[4] = "none" if overload["refused_p50_ms"] is None else f"{overload['refused_p50_ms']:.0f}"
    if terminate := one.get("terminate"):
        cells[5] = f"{terminate['lost']} of {terminate['in_flight']}"
    return cells
