"""Maps to several layers of one target, in one artifact."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.artifacts import load_artifact, rebuilding, save_artifact
from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.hub import OnHub
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.tables import html_table

KIND = "affine_maps"


@dataclass(frozen=True, eq=False)
class AffineMaps(OnHub):
    """A list of maps between two models, each to another site of the target, in the order in which they were fitted.

    Raises:
        LrtError: there is none, or two end at the same site.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> source, target = storyworld.load("small"), storyworld.load("medium")
        >>> maps = lrt.fit_affine_maps(source, target, storyworld.documents(60), layers=(3, (4, 5)))
        >>> vector = lrt.mean_difference(source, storyworld.contrast_pairs("refusal", 8), layer=3)
        >>> for carried in maps.transport(vector):
        ...     print(carried.site)
        storyworld-medium L4
        storyworld-medium L5
    """

    maps: tuple[AffineMap, ...]

    def __post_init__(self) -> None:
        if not self.maps or len({each.target.hook_name for each in self.maps}) < len(self.maps):
            raise LrtError(f"maps must end at different sites, one or more: {list(map(repr, self.maps))}")

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, number: int) -> AffineMap:
        return self.maps[number]

    def __iter__(self) -> Iterator[AffineMap]:
        return iter(self.maps)

    def transport(self, vectors: SteeringVector | Sequence[SteeringVector]) -> list[SteeringVector]:
        """Carry a feature's vector, or its vectors at each source layer that some map begins at, to every target layer.

        Raises:
            MismatchError: a map begins at a site that none of the vectors is at, or several are at one.
        """
        vectors = [vectors] if isinstance(vectors, SteeringVector) else list(vectors)
        at = {vector.site.hook_name: vector for vector in vectors}
        if len(at) < len(vectors):
            raise MismatchError(f"give one vector for each site, and not {', '.join(str(v.site) for v in vectors)}")
        return [
            each.transport([at[site.hook_name] for site in each.sources if site.hook_name in at]) for each in self.maps
        ]

    def save(self, folder: str | Path) -> Path:
        """Write the maps to a new folder.

        Raises:
            ArtifactError: the folder exists.
        """
        parts = [each.parts() for each in self.maps]
        tensors = {f"{number}.{name}": t for number, (_, some) in enumerate(parts) for name, t in some.items()}
        card = "\n".join(["# Affine maps", "", *(f"- {each!r}" for each in self.maps)])
        return save_artifact(folder, kind=KIND, config={"maps": [c for c, _ in parts]}, tensors=tensors, card=card)

    @classmethod
    def load(cls, folder: str | Path) -> "AffineMaps":
        """Read maps back.

        Raises:
            ArtifactError: the folder does not hold whole, unaltered maps.
        """
        config, tensors = load_artifact(folder, kind=KIND)
        with rebuilding(folder, "a folder of whole affine maps"):
            own: list[dict[str, Tensor]] = [{} for _ in config["maps"]]
            for name, tensor in tensors.items():
                number, _, of = name.partition(".")
                own[int(number)][of] = tensor
            parts = zip(config["maps"], own, strict=True)
            return cls(tuple(AffineMap.from_parts(each, some) for each, some in parts))

    def __repr__(self) -> str:
        return "AffineMaps(\n" + "".join(f"    {each!r},\n" for each in self.maps) + ")"

    def _repr_html_(self) -> str:
        return html_table(self.summary())

    def summary(self) -> dict[str, str]:
        """R² of each map on test documents, for a table."""
        return {
            f"{each.summary()['map']}": f"R² {each.report.test_r2:.3f}, {each.report.described()}" for each in self.maps
        }
