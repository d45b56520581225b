"""What the package raises when it refuses an input: the message says what is wrong and what to do."""


class LrtError(ValueError):
    """A refusal. Every error that `lrt_tl` raises on purpose is one of these.

    Examples:
        >>> import lrt_tl as lrt
        >>> try:
        ...     lrt.load_model("./no-such-model")
        ... except lrt.LrtError as error:
        ...     print(error)
        ./no-such-model is not a folder: give one that holds a model, or a hub name
    """


class MismatchError(LrtError):
    """Two things that must belong together do not: another model, basis, width or hook point.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small, medium = storyworld.load("small"), storyworld.load("medium")
        >>> vector = lrt.mean_difference(small, storyworld.contrast_pairs("refusal", 8), layer=1)
        >>> try:
        ...     vector.attach(medium)
        ... except lrt.MismatchError as error:
        ...     print(error)
        the vector has 64 dimensions, storyworld-medium has 128: carry it over with affine_map.transport
    """


class ArtifactError(LrtError):
    """A saved folder is missing, truncated, edited, or of another kind or version.

    Examples:
        >>> import lrt_tl as lrt
        >>> try:
        ...     lrt.AffineMap.load("no-such-map")
        ... except lrt.ArtifactError as error:
        ...     print(error)
        there is no folder no-such-map
    """
