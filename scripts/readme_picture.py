"""Draws the README's picture: images of a served collection, each with the hits of a search for it.

embedserve demo                     # in another terminal
python scripts/readme_picture.py docs/search.png
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from embedserve import Client

CELL_PX, GAP_PX, TEXT_PX, MARGIN_PX = 104, 14, 20, 24
HITS = 8
INK, FAINT, RIGHT, WRONG = (24, 24, 27), (113, 113, 122), (22, 120, 70), (190, 50, 50)


def main() -> None:
    """Draw a row for each of some labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--collection", default="demo")
    parser.add_argument("--rows", type=int, default=4)
    arguments = parser.parse_args()
    with Client(arguments.server) as client:
        first_of_label = {
            str(item.metadata["label"]): item.id for item in reversed(list(client.list_items(arguments.collection)))
        }
        labels = sorted(first_of_label)[:: max(len(first_of_label) // arguments.rows, 1)][: arguments.rows]
        width = 2 * MARGIN_PX + (HITS + 1) * (CELL_PX + GAP_PX) + GAP_PX
        height = 2 * MARGIN_PX + TEXT_PX + len(labels) * (CELL_PX + TEXT_PX + GAP_PX)
        canvas = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(canvas)
        font = ImageFont.load_default(14)
        draw.text((MARGIN_PX, MARGIN_PX - 8), "query", INK, font)
        draw.text(
            (MARGIN_PX + CELL_PX + 3 * GAP_PX, MARGIN_PX - 8),
            f"the {HITS} closest of 1,000, with their cosine",
            INK,
            font,
        )
        for row, label in enumerate(labels):
            top = MARGIN_PX + TEXT_PX + row * (CELL_PX + TEXT_PX + GAP_PX)
            query = first_of_label[label]
            hits = client.search(arguments.collection, id=query, k=HITS)
            cells = [(query, label, FAINT)] + [
                (hit.id, f"{hit.score:.3f} {hit.metadata['label']}", RIGHT if hit.metadata["label"] == label else WRONG)
                for hit in hits
            ]
            for column, (item_id, text, colour) in enumerate(cells):
                left = MARGIN_PX + column * (CELL_PX + GAP_PX) + (2 * GAP_PX if column else 0)
                [item] = client.get_items(arguments.collection, [item_id], include_media=True)
                if item is None or item.media is None:
                    raise SystemExit(f"{arguments.collection} keeps no image of {item_id}")
                picture = Image.open(io.BytesIO(item.media.data)).convert("RGB")
                canvas.paste(picture.resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS), (left, top))
                draw.text((left, top + CELL_PX + 2), text, colour, ImageFont.load_default(11))
    canvas.quantize(64).save(arguments.out, optimize=True)  # the images are grey, the text has three colours


if __name__ == "__main__":
    main()
