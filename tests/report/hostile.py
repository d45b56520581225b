"""Text that a page must show and never obey."""

HOSTILE = (
    "</script></style><script>alert(1)</script><img src=x onerror=alert(2)> & {{ 7 * 7 }} javascript:alert(3) "
    "\u202egnol\u202c \ud800 \x00\x1b[2J </td></table> &lt;b&gt;"
)
LONG = "long " * 200_000
"""A megabyte."""
