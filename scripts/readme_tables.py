"""Generates the tables of the READMEs from results and recipes, so that text and data cannot diverge.

python scripts/readme_tables.py            # rewrite the text between the markers
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks/results"
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "training"), str(REPOSITORY / "benchmarks")]


def main() -> None:
    """Rewrite the pages."""
    for page, tables in PAGES.items():
        page.write_text(with_tables(page.read_text(encoding="utf-8"), tables), encoding="utf-8")


def with_tables(text: str, tables: dict[str, Callable[[], str]]) -> str:
    """The text with the tables between the markers regenerated."""
    for name, make in tables.items():
        table = make()
        begin, end = f"<!-- {name}: made by scripts/readme_tables.py -->", f"<!-- end of {name} -->"
        between = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
        count = len(between.findall(text))
        if count != 1:
            raise ValueError(f"there are {count} places for the table {name!r}")
        text = between.sub(f"\n{table}\n".replace("\\", r"\\"), text)
    return text


def sample_table() -> str:
    """kNN accuracy on the sample."""
    result = _read("sample.json")
    evaluation = result["evaluation"]
    rows = [
        [row["name"], _percent(row["knn"]), _percent(row["same_label_top10"]), str(row["dimension"])]
        for row in evaluation["rows"]
    ]
    caption = (
        f"{evaluation['train_images']:,} images without labels, {result['training_minutes']:g} minutes on"
        f" {result['hardware']['cores']} cores ({result['hardware']['cpu']}), one seed, {result['date']}."
    )
    return f"{_table(['vectors', 'kNN accuracy', 'same label in top 10', 'numbers'], rows)}\n\n{caption}"


def overhead_table() -> str:
    """Images per second through gRPC beside the bare loop."""
    result = _read("serve_overhead.json")
    rows = []
    for encoder in result["encoders"]:
        what = f"{encoder['backbone']}, {encoder['size_px']} px"
        for leg in encoder["legs"].values():
            of_bare = "–" if leg["ratio"] == 1 else f"{leg['ratio']:.2f}"
            latency = "–" if leg["p50_ms"] is None else f"{leg['p50_ms']:.0f} / {leg['p99_ms']:.0f}"
            cpu = leg["server_cpu_ms_per_image"] or leg["client_cpu_ms_per_image"]
            rows.append([what, leg["name"], f"{leg['images_per_s']:,.0f}", of_bare, f"{cpu:.2f}", latency])
    header = ["encoder", "through", "images/s", "of the bare loop", "CPU ms per image", "p50 / p99 ms"]
    caption = (
        f"{result['hardware']['cores']} cores ({result['hardware']['cpu']}), medians of"
        f" {len(result['encoders'][0]['legs']['unary']['by_round']['ratio'])} rounds in turns, {result['date'][:10]}."
        f" Command: `{result['command']}`."
    )
    return f"{_table(header, rows)}\n\n{caption}"


def quality_table() -> str:
    """What the five methods reach on Fashion-MNIST."""
    result = _read("quality.json")
    evaluation = result["evaluation"]
    minutes: dict[str, list[float]] = {}
    for run in result["training"]:
        minutes.setdefault(run["method"], []).append(run["cpu_minutes"])
    columns = {
        "knn": "kNN",
        "linear": "linear",
        "recall_1": "recall@1",
        "map": "mAP",
        "same_label_top10": "top 10",
        "self_recall_1": "finds itself",
    }
    rows = []
    for row in evaluation["rows"]:
        method = row["method"]
        name = row["name"].replace("trained", method, 1) if method else row["name"]
        spent = f"{sum(minutes[method]) / len(minutes[method]):.0f}" if method else "–"
        rows.append([name, *(_percent(row[key]) for key in columns), str(row["dimension"]), spent])
    header = ["vectors", *columns.values(), "numbers", "CPU minutes"]
    seeds = max(run["seed"] for run in result["training"]) + 1
    caption = (
        f"{evaluation['train_images']:,} images to learn from without labels and to search in,"
        f" {evaluation['test_images']:,} to ask with; {'one seed' if seeds == 1 else f'{seeds} seeds'};"
        f" supervised: {next(row['note'] for row in evaluation['rows'] if row['name'] == 'supervised')};"
        f" {result['hardware']['cpu']}, {result['date']}, torch {result['versions']['torch']}."
        f" Command: `{result['command']}`."
    )
    return f"{_table(header, rows)}\n\n{caption}"


def peers_table() -> str:
    """Embedserve beside other servers."""
    result = _read("serve_peers.json", missing_ok=True)
    if result is None:
        return _UNMEASURED
    legs = {"single": "16 clients, 1 per call", "list": "4 clients, 16 per call"}
    rows = []
    for encoder in result["encoders"]:
        what = f"{encoder['backbone']}, {encoder['size_px']} px"
        for leg, title in legs.items():
            servers = {name: one for name, one in encoder["servers"].items() if leg in one["legs"]}
            for name, one in sorted(servers.items(), key=lambda row: -row[1]["legs"][leg]["ratio"]):
                figures = one["legs"][leg]
                rows.append(
                    [
                        f"{what}: {title}",
                        name,
                        f"{figures['images_per_s']:,.0f}",
                        f"{figures['ratio']:.2f}",
                        f"{figures['cpu_ratio']:.2f}",
                        f"{figures['server_cpu_ms_per_image']:.2f}",
                        f"{figures['p50_ms']:.0f} / {figures['p99_ms']:.0f}",
                        f"{one['memory_mb']:.0f} ({one['processes']})",
                        f"{one['start_s']:.1f}",
                    ]
                )
    header = [
        "encoder and load",
        "server",
        "images/s",
        "of the bare loop",
        "by CPU time",
        "CPU ms per image",
        "p50 / p99 ms",
        "MB (processes)",
        "start s",
    ]
    names = ", ".join(f"{name} {number}" for name, number in result["peer_versions"].items())
    caption = (
        f"{result['hardware']['cores']} cores ({result['hardware']['cpu']}), medians of {result['rounds']} rounds in"
        f" turns, {result['date'][:10]}; {names}. Command: `{result['command']}`."
    )
    return f"{_table(header, rows)}\n\n{caption}"


def behaviour_table() -> str:
    """Behaviour of the servers under failure."""
    from measuring.tables import behaviour_cells

    result = _read("serve_peers.json", missing_ok=True)
    if result is None or "behaviour" not in result:  # --part throughput
        return _UNMEASURED
    rows = [
        [name if kind == "best" else f"{name}, batches of 8", *behaviour_cells(one)]
        for name, kinds in result["behaviour"]["servers"].items()
        for kind, one in kinds.items()
    ]
    header = [
        "server",
        "good ones failed of 16",
        "burnt after cancel: CPU s = images",
        "p99 beside a bulk client",
        "goodput at 4×",
        "refusal ms",
        "lost at SIGTERM",
    ]
    return _table(header, rows)


def search_table(name: str = "search_peers.json") -> str:
    """Search of embedserve beside other systems."""
    from searching import report

    result = _read(name, missing_ok=True)
    if result is None or not result["data"]:
        return _SEARCH_UNMEASURED
    blocks = []
    for data in result["data"]:
        rows = []
        for target, title in report.targets_of(data).items():
            rows += [[system, title, *cells] for system, cells in report.rows_of(data, target)]
        about = (
            f"{data['vectors']:,} × {data['dimension']}, {data['name'].partition('-')[0]}: cosine of the closest"
            f" {data['top1_cosine']}, relative contrast {data['relative_contrast']}, local dimension"
            f" {data['local_dimension']}."
        )
        blocks += [about, _table(["system", "setting", *report.HEADER], rows), *report.notes(data)]
    versions = result["peer_versions"] | {key: result["versions"][key] for key in ("faiss-cpu",)}
    names = ", ".join(f"{package} {number}" for package, number in versions.items())
    skipped = "".join(f" {system}: {why}." for system, why in result["skipped"].items())
    blocks.append(
        f"{result['hardware']['cores']} cores ({result['hardware']['cpu']}), medians of {result['rounds']} rounds in"
        f" turns, {result['date'][:10]}; {names}.{skipped} Command: `{result['command']}`."
    )
    return "\n\n".join(block.replace("*", r"\*") for block in blocks)


def large_search_table() -> str:
    """The same with a million vectors."""
    return search_table("search_peers_large.json")


def search_alone_table() -> str:
    """Restarts, writes, filters of embedserve, and the aims."""
    from searching import report

    blocks = []
    for name in ("search_peers.json", "search_peers_large.json"):
        result = _read(name, missing_ok=True)
        if result is None:
            continue
        alone = result.get("embedserve", {})
        lines = [report.restart_line(alone["restart"])] if "restart" in alone else []
        lines += report.write_lines(alone.get("writes", {}))
        if lines:
            blocks.append("\n".join(f"- {line}" for line in lines))
        if "filters" in alone:
            blocks.append(f"{alone['filters']['items']:,} items:")
            blocks.append(_table(report.FILTER_HEADER, report.filter_rows(alone["filters"])))
        rows = [[aim["aim"], aim["measured"], "reached" if aim["reached"] else "falls short"] for aim in result["aims"]]
        if rows:
            blocks.append(_table(["aim", "measured", ""], rows))
        for mode in sorted({aim["mode"] for aim in result["aims"] if not aim["reached"] and aim["mode"]}):
            if where := alone.get("profile", {}).get(mode):
                profile = "\n".join(report.profile_lines(where))
                blocks.append(f"Where the time goes, {report.MODES[mode]}:\n\n```text\n{profile}\n```")
    return "\n\n".join(blocks) or _SEARCH_UNMEASURED


def recipe_table() -> str:
    """The project's own recipes."""
    from embedserve_training.plan import recipes

    rows = [[f"[{name}](recipes/{name}.toml)", recipes.load(name).title] for name in recipes.names()]
    return "\n".join(f"| {' | '.join(line)} |" for line in [["recipe", "what"], ["---", "---"], *rows])


PAGES: dict[Path, dict[str, Callable[[], str]]] = {
    REPOSITORY / "README.md": {"sample": sample_table, "overhead": overhead_table},
    REPOSITORY / "benchmarks/README.md": {
        "peers": peers_table,
        "behaviour": behaviour_table,
        "search": search_table,
        "search-large": large_search_table,
        "search-alone": search_alone_table,
    },
    REPOSITORY / "training/README.md": {"quality": quality_table, "recipes": recipe_table},
}


def _percent(figure: dict[str, Any] | None) -> str:
    """Mean and, for several seeds, spread of a figure of `evaluate`."""
    if figure is None:
        return "–"
    spread = "" if figure["spread"] is None else f" ± {100 * figure['spread']:.1f}"
    return f"{100 * figure['mean']:.1f}{spread} %"


_UNMEASURED = "Not measured yet: `make serve-peers` does."
_SEARCH_UNMEASURED = "Not measured yet: `make search-peers` does."


def _read(name: str, *, missing_ok: bool = False) -> Any:
    if missing_ok and not (RESULTS / name).exists():
        return None
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
