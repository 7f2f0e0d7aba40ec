"""Writes the tables of README.md from the results in benchmarks/results, so that text and data cannot part.

python scripts/readme_tables.py            # rewrite what stands between the markers
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
README = REPOSITORY / "README.md"
RESULTS = REPOSITORY / "benchmarks/results"


def main() -> None:
    """Rewrite README.md."""
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(text: str) -> str:
    """The text with each table between its markers made from the results."""
    for name, table in (("sample", sample_table()), ("overhead", overhead_table())):
        begin, end = f"<!-- {name}: made by scripts/readme_tables.py -->", f"<!-- end of {name} -->"
        between = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
        count = len(between.findall(text))
        if count != 1:
            raise ValueError(f"README.md has {count} places for the table {name!r}")
        text = between.sub(f"\n{table}\n".replace("\\", r"\\"), text)
    return text


def sample_table() -> str:
    """kNN accuracy on the sample."""
    result = _read("sample.json")
    evaluation = result["evaluation"]
    rows = [
        [row["name"], f"{100 * row['knn']:.1f} %", f"{100 * row['same_label_top10']:.1f} %", str(row["dimension"])]
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


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
