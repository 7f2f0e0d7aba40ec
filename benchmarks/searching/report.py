"""The tables that search_peers.py prints, made from its document; benchmarks/README.md has the same rows."""

from __future__ import annotations

from typing import Any

FOREIGN_CORES = 0.2
"""A figure is marked if other processes kept more cores than this busy."""

MODES = {"single": "1 client", "eight": "8 clients", "batch": "batches of 64"}

HEADER = [
    "recall",
    *(f"{title}: queries/s" for title in MODES.values()),
    "of FAISS",
    "CPU ms",
    "p50 / p99 ms",
    "build s",
    "MB meanwhile",
    "MB (server)",
    "disk MB",
]
"""``of FAISS`` is for each kind of load; CPU time and latency are those of 8 clients."""

_WIDTHS = (8, 20, 21, 25, 22, 9, 18, 9, 14, 13, 9)


def rows_of(data: dict[str, Any], target: str) -> list[tuple[str, list[str]]]:
    """One line for each system that reaches a target, the fastest with 8 clients first; – if not measured."""
    lines = []
    for name, one in data["systems"].items():
        reached = one["targets"].get(target)
        if reached is None or not reached["modes"]:
            continue
        modes = reached["modes"]
        eight = modes["eight"]
        server = f" ({one['server_mb']:.0f})" if one["server_mb"] else ""
        cells = [
            f"{reached['recall']:.3f}",
            *(f"{modes[mode]['qps']:,.0f}{'*' if modes[mode]['disturbed'] else ''}" for mode in MODES),
            " / ".join(_ratio(modes[mode].get("of_faiss")) for mode in MODES),
            f"{eight['cpu_ms']:.3f}",
            f"{eight['p50_ms']:.2f} / {eight['p99_ms']:.2f}",
            f"{one['build']['seconds']:.0f}",
            f"{one['build']['peak_mb']:.0f}",
            f"{one['memory_mb']:.0f}{server}",
            f"{one['disk_mb']:.0f}",
        ]
        lines.append((eight["qps"], name, cells))
    return [(name, cells) for _, name, cells in sorted(lines, key=lambda line: -line[0])]


def targets_of(data: dict[str, Any]) -> dict[str, str]:
    """The targets that any system reaches → their titles."""
    targets = sorted({target for one in data["systems"].values() for target in one["targets"]})
    return {target: f"recall ≥ {target}" if target[0].isdigit() else f"embedserve {target}" for target in targets}


def notes(data: dict[str, Any]) -> list[str]:
    """Notes on the rows of a data set: systems that are missing, and disturbed measurements."""
    found = [f"{name}: {one['problem']}" for name, one in data["systems"].items() if one["problem"]]
    reached = [reached for one in data["systems"].values() for reached in one["targets"].values()]
    if any(leg["disturbed"] for one in reached for leg in one["modes"].values()):
        found.append(f"* more than {FOREIGN_CORES} cores were busy with something else")
    return found


def print_comparison(data: dict[str, Any]) -> None:
    """A block for each target."""
    print(
        f"\n{data['name']}: {data['vectors']:,} × {data['dimension']}; {data['about']}. Cosine of the closest"
        f" {data['top1_cosine']}, relative contrast {data['relative_contrast']}, local dimension"
        f" {data['local_dimension']}."
    )
    for target, title in targets_of(data).items():
        print(f"\n{title:<24}" + "".join(f"{word:>{width}}" for word, width in zip(HEADER, _WIDTHS, strict=True)))
        for name, cells in rows_of(data, target):
            print(f"{name:<24}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)))
    print("\n".join(["", *notes(data)]), flush=True)


# --- embedserve alone -----------------------------------------------------------------------------------------------


def restart_line(found: dict[str, Any]) -> str:
    """The time of a restart, in a sentence."""
    return (
        f"restart with {found['items']:,} items: ready after {found['ready_s']:.2f} s, of which the collections take"
        f" {found['store_s']:.2f} s; first hit after {found['first_hit_s']:.2f} s; after kill -9 ready after"
        f" {found['ready_after_kill_s']:.2f} s"
    )


def write_lines(found: dict[str, Any]) -> list[str]:
    """The speed of writes."""
    lines = []
    for name, result in found.items():
        if not isinstance(result, dict):
            continue
        if "rows_per_s" in result:
            lines.append(f"{name}: {result['rows_per_s']:,.0f} rows/s, {result['cpu_ms_per_row']:.3f} CPU ms a row")
        else:
            beside = f", {result['searches_per_s']:,.0f} searches/s beside" if "searches_per_s" in result else ""
            lines.append(f"{name}: p50 {result['p50_ms']:.2f} ms, p99 {result['p99_ms']:.2f} ms{beside}")
    return lines


def filter_rows(found: dict[str, Any]) -> list[list[str]]:
    """One line for each selectivity: matches, recall, queries with too few hits, queries/s, latency."""
    return [
        [
            name,
            f"{one['matches']:,}",
            f"{one['recall']:.3f}",
            str(one["short"]),
            f"{one['qps']:,.0f}",
            f"{one['p50_ms']:.2f} / {one['p99_ms']:.2f}",
        ]
        for name, one in found["selectivity"].items()
    ]


FILTER_HEADER = ["filter holds for", "matches", "recall", "too few hits", "queries/s", "p50 / p99 ms"]


def print_alone(alone: dict[str, Any]) -> None:
    """Print the measurements of embedserve alone."""
    if found := alone.get("restart"):
        print(restart_line(found))
    if found := alone.get("writes"):
        print("\n".join(write_lines(found)))
    if found := alone.get("filters"):
        for row in [FILTER_HEADER, *filter_rows(found)]:
            print(f"{row[0]:<18}" + "".join(f"{cell:>16}" for cell in row[1:]))
    disturbed = [part for part, one in alone.items() if one["foreign_cores"] > FOREIGN_CORES]
    if disturbed:
        print(f"more than {FOREIGN_CORES} cores were busy with something else during: {', '.join(disturbed)}")
    print(flush=True)


# --- Aims -----------------------------------------------------------------------------------------------------------


def aims(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The project's aims, the measurements, and whether the aims are reached; only those that were measured."""
    found = [aim for data in document["data"] for aim in _aims_of(data)]
    alone = document.get("embedserve", {})
    if one := alone.get("restart"):
        found.append(_aim(f"restart of {one['items']:,} items < 2 s", f"{one['ready_s']:.2f} s", one["ready_s"] < 2))
    if one := alone.get("writes"):
        rates = [one[f"upsert, {clients}"]["rows_per_s"] for clients in ("1 client", "2 clients")]
        said = f"{rates[0]:,.0f} by one client, {rates[1]:,.0f} by two"
        found.append(_aim("durable upsert ≥ 10,000 rows/s in batches of 256", said, max(rates) >= 10_000))
        p50 = one["one by one, 4 clients searching"]["p50_ms"]
        found.append(_aim("one item acknowledged while searching: p50 < 5 ms", f"{p50:.2f} ms", p50 < 5))
    if one := alone.get("filters"):
        worst = min(result["recall"] for result in one["selectivity"].values())
        short = sum(result["short"] for result in one["selectivity"].values())
        good = worst >= 0.95 and not short
        aim = "filters: recall ≥ 0.95, never fewer than min(k, matches) hits"
        found.append(_aim(aim, f"{worst:.3f}, {short} queries with fewer", good))
    return found


def _aims_of(data: dict[str, Any], target: str = "0.95") -> list[dict[str, Any]]:
    """The aims of a comparison."""
    with_target = {
        name: one["targets"][target]["modes"]
        for name, one in data["systems"].items()
        if target in one["targets"] and one["targets"][target]["modes"]
    }
    found = []
    if (ours := with_target.get("embedserve")) is None:
        return []
    if (ratio := ours["batch"].get("of_faiss")) is not None:
        same = ours["batch"].get("of_same_index")
        said = f"{ratio:.2f} of the fastest" + ("" if same is None else f", {same:.2f} of the same kind of index")
        found.append(_aim(f"{data['name']}: batches ≥ 0.7 of bare FAISS", said, ratio >= 0.7, "batch"))
    behind = [name for name in with_target if crosses(name, data["systems"][name]["what"])]
    others = {name: with_target[name]["eight"]["qps"] for name in behind}
    if others:
        fastest = max(others, key=lambda name: others[name])
        own = ours["eight"]["qps"]
        aim = f"{data['name']}: 8 clients ahead of every peer behind a process or language boundary"
        said = f"{own:,.0f} queries/s, {fastest} {others[fastest]:,.0f}"
        found.append(_aim(aim, said, own > others[fastest], "eight"))
    return found


def crosses(name: str, what: str) -> bool:
    """Whether a query of the peer crosses a process or language boundary, unlike that of a C++ library."""
    return not name.startswith("embedserve") and not what.startswith("library")


def print_aims(found: list[dict[str, Any]], profile: dict[str, Any] | None) -> None:
    """One line for each aim, with the profile of those that fall short."""
    profile = dict(profile or {})
    for one in found:
        print(f"{'reached' if one['reached'] else 'falls short':<13}{one['aim']}: {one['measured']}")
        where = profile.pop(one["mode"], None)  # one profile for all data sets
        if not one["reached"] and where:
            print("\n".join(f"             {line}" for line in profile_lines(where)))


def profile_lines(where: dict[str, Any]) -> list[str]:
    """The profile of a kind of load."""
    lines = [", ".join(f"{key} {value}" for key, value in where.items() if key != "event_loop")]
    lines += [f"{row['own_s']:>8.3f} s {row['calls']:>8} calls  {row['function']}" for row in where["event_loop"]]
    return lines


def _aim(aim: str, measured: str, reached: bool, mode: str = "") -> dict[str, Any]:
    return {"aim": aim, "measured": measured, "reached": reached, "mode": mode}


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
