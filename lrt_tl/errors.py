"""What the package raises when it refuses an input: the message says what is wrong and what to do."""


class LrtError(ValueError):
    """A refusal. Every error that `lrt_tl` raises on purpose is one of these."""


class MismatchError(LrtError):
    """Two things that must belong together do not: another model, basis, width or hook point."""


class ArtifactError(LrtError):
    """A saved folder is missing, truncated, edited, or of another kind or version."""
