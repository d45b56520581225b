"""The suite checks every argument's type before the package sees it; here the package's own refusals are reached."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import config


@contextmanager
def without_type_checks() -> Iterator[None]:
    """Call the package as a user does, who has no run-time type checker."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)
