"""Quick look at the first and last bytes of image files, which shows most damage without decoding."""

_ENDS = {
    b"\xff\xd8\xff": b"\xff\xd9",  # JPEG
    b"\x89PNG\r\n\x1a\n": b"IEND\xae\x42\x60\x82",
    b"GIF8": b"\x3b",
}


def looks_intact(file: bytes) -> bool:
    """Return whether a file begins and ends as its format does. False may also mean another format."""
    if file[:4] == b"RIFF" and file[8:12] == b"WEBP":
        return len(file) >= 8 + int.from_bytes(file[4:8], "little")
    return any(file.startswith(start) and file.endswith(end) for start, end in _ENDS.items())
