"""Which files are images: the formats that are read, the suffixes that files have, and the first bytes."""

from __future__ import annotations

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""Formats that are read. Pillow's other parsers, where its vulnerabilities have been, stay unreachable."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Suffixes of the files that a folder scan takes for images."""

SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
"""First bytes of the formats that are read: what begins with one of them and cannot be opened is damaged."""
