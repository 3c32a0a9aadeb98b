"""Numbers as people read them."""

UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "bytes"))


def unit_for(largest: int) -> tuple[int, str]:
    """Return the decimal unit, and its size in bytes, that suits a largest number."""
    for size, name in UNITS:
        if largest >= size:
            return size, name
    return UNITS[-1]


def format_bytes(number: int) -> str:
    """Return bytes in a decimal unit, three digits of it: 123.7 kB."""
    size, name = unit_for(number)
    if size == 1:
        return "1 byte" if number == 1 else f"{number:,} bytes"
    value = number / size
    return f"{value:,.{2 if value < 10 else 1}f} {name}"


def format_share(part: int, whole: int) -> str:
    """Return a share in per cent; 0 % and 100 % only where nothing and all is meant."""
    if part <= 0 or whole <= 0:
        return "0 %"
    if part == whole:
        return "100 %"
    percent = 100 * part / whole
    return "< 0.1 %" if percent < 0.1 else f"{min(99.9, percent):.1f} %"
