"""Calling, transporting, refusing, saving and showing a map."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lrt_tl.alignment.affine_map import AffineMap, cycle_r2
from lrt_tl.alignment.affine_maps import AffineMaps
from lrt_tl.alignment.fit_report import FitReport
from lrt_tl.artifacts import save_artifact
from lrt_tl.errors import ArtifactError, LrtError, MismatchError
from lrt_tl.models.identity import ModelIdentity, Site
from lrt_tl.steering.vector import SteeringVector

REPORT = FitReport(
    method="ridge",
    test_r2=0.8123,
    validation_r2=0.8,
    cv_r2=0.79,
    fold_r2=(0.78, 0.79, 0.8),
    ridge=0.00123,
    relative_ridge=1e-4,
    rank=None,
    candidates="relative ridge",
    curve=((1e-4, 0.79), (1e-3, 0.7)),
    tokens=12345,
    tokens_per_dimension=12345 / 3,
    harvest={"documents": 7, "median_norms": {"source:blocks.1.hook_resid_post": 1 / 3}},
)


def identity(name: str, d_model: int, **changes: Any) -> ModelIdentity:
    settings = {
        "tokenizer": "abc",
        "dtype": "float32",
        "basis": "raw",
        "weights": {"embed": 0.1, "blocks.0.mlp": 0.2, "blocks.1.mlp": 0.3},
    }
    return ModelIdentity(**{"name": name, "revision": None, "n_layers": 2, "d_model": d_model, **settings, **changes})


SOURCE = Site("blocks.1.hook_resid_post", 3, identity("small", 3))
TARGET = Site("blocks.0.hook_resid_post", 2, identity("large", 2))


def affine_map(**changes: Any) -> AffineMap:
    settings: dict[str, Any] = {
        "weight": torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 1 / 3]]),
        "bias": torch.tensor([10.0, 20.0]),
        "sources": (SOURCE,),
        "target": TARGET,
        "target_covariance": torch.tensor([[2.0, 0.5], [0.5, 1.0]]),
        "target_norm": 5.0,
        "report": REPORT,
    }
    settings |= changes
    variances = torch.arange(1.0, 1 + sum(site.d_model for site in settings["sources"]))
    return AffineMap(**{"source_covariance": variances.diag(), **settings})


def vector(**changes: Any) -> SteeringVector:
    return SteeringVector(torch.tensor([1.0, 2.0, 3.0]), replace(SOURCE, **changes), 7.0, {"method": "test"})


def test_states_are_mapped_with_the_bias_and_differences_without() -> None:
    states = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]])
    mapped = affine_map()(states)
    torch.testing.assert_close(mapped, torch.tensor([[[15.0, 19.0], [10.0, 20.0]]]))
    torch.testing.assert_close(affine_map().transport(states), mapped - torch.tensor([10.0, 20.0]))
    torch.testing.assert_close(mapped[0, 0] - mapped[0, 1], affine_map().transport(states[0, 0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_precision_is_that_of_the_states(dtype: torch.dtype) -> None:
    state = torch.ones(3, dtype=dtype)
    assert affine_map()(state).dtype == affine_map().transport(state).dtype == dtype


def test_a_vector_is_carried_to_the_target() -> None:
    carried = affine_map().transport(vector())
    torch.testing.assert_close(carried.direction, torch.tensor([5.0, -1.0]))
    assert (carried.site, carried.residual_norm) == (TARGET, 5.0)
    assert carried.provenance == {
        "method": "test",
        "transported_through": repr(affine_map()),
        "transported_from": "small L1",
        "carried": asdict(affine_map().carried(vector().direction)),
    }


BELOW = replace(SOURCE, hook_name="blocks.0.hook_resid_post")


def map_from_two() -> AffineMap:
    return affine_map(sources=(BELOW, SOURCE), weight=torch.arange(12.0).reshape(2, 6))


def test_a_map_from_two_layers_takes_a_vector_of_each_in_any_order() -> None:
    both, at, below = map_from_two(), vector(), replace(vector(), direction=torch.tensor([7.0, 8.0, 9.0]), site=BELOW)
    wanted = both.weight @ torch.tensor([7.0, 8.0, 9.0, 1.0, 2.0, 3.0])
    for vectors in ([at, below], (below, at)):
        carried = both.transport(vectors)
        torch.testing.assert_close(carried.direction, wanted)
        assert carried.provenance["transported_from"] == "small L0, small L1"
    assert repr(both).startswith("AffineMap(small L0 + L1 → large L0, 6→2")


@pytest.mark.parametrize("hooks", [[1], [1, 1], [0, 1, 1], []])
def test_other_vectors_than_one_of_each_layer_are_refused(hooks: list[int]) -> None:
    vectors = [vector(hook_name=f"blocks.{layer}.hook_resid_post") for layer in hooks]
    with pytest.raises(MismatchError, match="takes a vector at each; these are at"):
        map_from_two().transport(vectors)


def test_one_vector_for_two_layers_is_told_how_to_get_the_others() -> None:
    with pytest.raises(
        MismatchError, match=r"at small L1\. One pass .*mean_difference\(source, pairs, layer=\[0, 1\]\)$"
    ):
        map_from_two().transport(vector())
    middle = replace(BELOW, hook_name="blocks.0.hook_resid_mid")
    with pytest.raises(MismatchError, match=r"hook_name=\['blocks\.0\.hook_resid_mid', 'blocks\.1\.hook_resid_post'\]"):
        replace(map_from_two(), sources=(middle, SOURCE)).transport(vector())
    with pytest.raises(MismatchError, match=r"these are at small L1$"):
        replace(map_from_two(), sources=(replace(BELOW, features="encode"), SOURCE)).transport(vector())


def test_a_map_the_wrong_way_round_is_told() -> None:
    turned = r"lives at large L0 .*begins at small L1 .*: was the map fitted with source and target exchanged\?"
    with pytest.raises(MismatchError, match=turned):
        affine_map().transport(SteeringVector(torch.ones(2), TARGET))
    alike = replace(SOURCE, model=identity("large", 3, tokenizer="def"))
    with pytest.raises(MismatchError, match="exchanged"):
        affine_map(target=replace(TARGET, model=alike.model)).transport(vector(model=alike.model))


def test_a_cache_is_mapped_by_the_names_in_it() -> None:
    states = {site.hook_name: torch.randn(2, 5, 3) for site in (SOURCE, BELOW)}
    together = torch.cat([states[BELOW.hook_name], states[SOURCE.hook_name]], -1)
    torch.testing.assert_close(map_from_two()(states), map_from_two()(together))
    torch.testing.assert_close(affine_map()(states), affine_map()(states[SOURCE.hook_name]))
    with pytest.raises(MismatchError, match=r"holds no 'blocks\.0\.hook_resid_post'"):
        map_from_two()({SOURCE.hook_name: states[SOURCE.hook_name]})
    with pytest.raises(LrtError, match="a tensor or a cache, not list"):
        affine_map()([1.0, 2.0, 3.0])
    with pytest.raises(LrtError, match="begins at 2 sites"):
        _ = map_from_two().source


def test_a_map_from_two_layers_comes_back(tmp_path: Path) -> None:
    saved = AffineMap.load(map_from_two().save(tmp_path / "map"))
    assert saved.sources == (BELOW, SOURCE)
    torch.testing.assert_close(saved.weight, map_from_two().weight)


@pytest.mark.parametrize("shape", [(2,), (3, 4)])
def test_states_of_another_width_are_refused(shape: tuple[int, ...]) -> None:
    for call in (affine_map(), affine_map().transport):
        with pytest.raises(MismatchError, match="takes states of small L1 with 3 dimensions"):
            call(torch.ones(shape))
    with pytest.raises(MismatchError, match="takes states"):
        affine_map().transport(torch.tensor(1.0))


def test_a_vector_from_elsewhere_is_refused() -> None:
    other = replace(vector(), direction=torch.ones(2), site=replace(SOURCE, d_model=2))
    with pytest.raises(MismatchError, match=r"small L1 \(blocks.1.hook_resid_post, 2 dimensions\); .* 3 dimensions\)$"):
        affine_map().transport(other)
    with pytest.raises(MismatchError, match="lives at small L0"):
        affine_map().transport(vector(hook_name="blocks.0.hook_resid_post"))
    with pytest.raises(MismatchError, match="belongs to small; this model, tiny, differs: the weights of blocks"):
        affine_map().transport(
            vector(model=identity("tiny", 3, weights={"embed": 0.1, "blocks.0.mlp": 0.25, "blocks.1.mlp": 0.3}))
        )
    with pytest.raises(MismatchError, match=r"basis is centered, not raw.*without processing"):
        affine_map().transport(vector(model=identity("small", 3, basis="centered")))


def test_what_is_not_known_is_not_checked() -> None:
    assert affine_map().transport(vector(model=None)).site == TARGET
    no_model = affine_map(sources=(replace(SOURCE, model=None),))
    assert no_model.transport(vector()).site == TARGET


def test_a_map_that_knows_no_place_carries_tensors_only() -> None:
    nowhere = affine_map(sources=(Site("", 3),), target=Site("", 2))
    torch.testing.assert_close(nowhere.transport(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([5.0, -1.0]))
    with pytest.raises(MismatchError, match=r"begins at unknown model \(no hook name, 3 dimensions\)"):
        nowhere.transport(vector())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weight": torch.ones(2, 4), "source_covariance": None},
            r"from small L1 to large L0 has shape \(2, 3\), not \(2, 4\)",
        ),
        ({"weight": torch.full((2, 3), float("nan"))}, "NaN or infinity"),
        ({"bias": torch.full((2,), float("inf"))}, "NaN or infinity"),
    ],
)
def test_a_map_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LrtError, match=message):
        affine_map(**changes)


def test_few_tokens_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"fitted on 19\.5 tokens per source dimension; under 20"):
        affine_map(report=replace(REPORT, tokens_per_dimension=19.5))


@pytest.mark.parametrize("changes", [{}, {"target_norm": None, "sources": (Site("", 3),)}])
def test_saving_loses_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    saved = affine_map(**changes)
    folder = saved.save(tmp_path / "map")
    loaded = AffineMap.load(folder)
    for name in ("weight", "bias", "source_covariance", "target_covariance"):
        assert torch.equal(getattr(loaded, name), getattr(saved, name))
    for name in ("sources", "target", "target_norm", "report"):
        assert getattr(loaded, name) == getattr(saved, name)
    card = (folder / "README.md").read_text()
    assert all(value in card for value in saved.summary().values())


def test_another_artifact_is_not_a_map(tmp_path: Path) -> None:
    vector().save(tmp_path / "vector")
    with pytest.raises(ArtifactError, match="is of kind steering_vector, not affine_map"):
        AffineMap.load(tmp_path / "vector")


def test_a_map_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    save_artifact(tmp_path / "map", kind="affine_map", config={}, tensors={"weight": torch.ones(2, 3)}, card="")
    with pytest.raises(ArtifactError, match="is not a whole affine map: KeyError"):
        AffineMap.load(tmp_path / "map")


def test_how_a_map_shows() -> None:
    assert repr(affine_map()) == "AffineMap(small L1 → large L0, 3→2, ridge λ=0.0012, R² 0.81)"
    assert affine_map().summary() == {
        "map": "small L1 → large L0, 3 → 2",
        "R² on test documents": "0.812",
        "R² in cross-validation": "0.790 (0.780 … 0.800)",
        "method": "ridge λ=0.0012",
        "tokens": "12,345 (4,115 per source dimension)",
    }


def test_html_is_escaped() -> None:
    hostile = Site("blocks.1.hook_resid_post", 3, identity("<script>alert('x')</script>&", 3))
    shown = affine_map(sources=(hostile,))._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    assert "0.812" in shown


def test_a_reader_is_pulled_back_to_read_what_it_would_of_mapped_states() -> None:
    weight, bias, states = torch.randn(5, 2), torch.randn(5), torch.randn(7, 3)
    pulled, offset = affine_map().pull_back(weight, bias)
    torch.testing.assert_close(states @ pulled.T + offset, affine_map()(states) @ weight.T + bias)
    one, alone = affine_map().pull_back(weight[0])
    torch.testing.assert_close(states @ one + alone + bias[0], (states @ pulled.T + offset)[:, 0])
    with pytest.raises(MismatchError, match=r"ends at large L0 with 2 dimensions; a reader of shape \(3,\)"):
        affine_map().pull_back(torch.ones(3))


def there_and_back(back_weight: torch.Tensor, covariance: torch.Tensor) -> tuple[AffineMap, AffineMap]:
    back = affine_map(
        weight=back_weight, bias=torch.zeros(3), sources=(TARGET,), target=SOURCE, target_covariance=covariance
    )
    return affine_map(), back


def test_the_cycle_is_the_share_of_variance_that_comes_back() -> None:
    states = torch.randn(500, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64)
    states = states - states.mean(0)
    there, back = there_and_back(torch.randn(3, 2), (states.T @ states / 500).float())
    returned = states @ there.weight.double().T @ back.weight.double().T
    wanted = 1 - (returned - states).square().sum() / states.square().sum()
    assert cycle_r2(there, back) == pytest.approx(float(wanted), rel=1e-4)
    rank_two = there.weight.T @ torch.linalg.inv(there.weight @ there.weight.T)  # back is the inverse on two dimensions
    kept = there.weight.T @ torch.randn(2, 2)
    assert cycle_r2(*there_and_back(rank_two, kept @ kept.T)) == pytest.approx(1, abs=1e-5)
    with pytest.raises(MismatchError, match="the end of the way there is at large L0"):
        cycle_r2(there, there)
    with pytest.raises(MismatchError, match="maps that begin at one site each"):
        cycle_r2(map_from_two(), back)


def test_features_are_carried_as_tensors_only() -> None:
    of_features = affine_map(sources=(replace(SOURCE, features="encode"),))
    assert repr(of_features).startswith("AffineMap(small L1 encode → large L0")
    torch.testing.assert_close(of_features.transport(torch.tensor([0.0, 1.0, 0.0])), torch.tensor([2.0, -1.0]))
    with pytest.raises(MismatchError, match="begins at features of small L1 encode, and a steering vector is none"):
        of_features.transport(vector())
    with pytest.raises(MismatchError, match="at features of small L1 encode, which a cache does not hold"):
        of_features({SOURCE.hook_name: torch.ones(2, 3)})


def several() -> AffineMaps:
    above = replace(TARGET, hook_name="blocks.1.hook_resid_post")
    return AffineMaps((affine_map(), replace(map_from_two(), target=above)))


def test_maps_to_several_layers_carry_and_come_back(tmp_path: Path) -> None:
    both = [replace(vector(), site=BELOW), vector()]
    carried = several().transport(both)
    assert [str(each.site) for each in carried] == ["large L0", "large L1"]
    torch.testing.assert_close(carried[0].direction, affine_map().transport(both[1]).direction)
    torch.testing.assert_close(carried[1].direction, map_from_two().transport(both).direction)
    saved = AffineMaps.load(several().save(tmp_path / "maps"))
    assert (len(saved), repr(saved)) == (2, repr(several()))
    for found, wanted in zip(saved, several(), strict=True):
        for name in ("weight", "bias", "source_covariance", "target_covariance"):
            torch.testing.assert_close(getattr(found, name), getattr(wanted, name))
        assert (found.sources, found.target, found.target_norm) == (wanted.sources, wanted.target, wanted.target_norm)
        assert found.report == wanted.report
    assert "small L0 + L1 → large L1, 6 → 2" in saved._repr_html_()


def test_maps_that_are_not_several_are_refused(tmp_path: Path) -> None:
    for maps in ((), (affine_map(), affine_map())):
        with pytest.raises(LrtError, match="must end at different sites"):
            AffineMaps(maps)
    with pytest.raises(MismatchError, match="takes a vector at each"):
        several().transport(vector())
    with pytest.raises(MismatchError, match="one vector for each site, and not small L1, small L1"):
        several().transport([vector(), vector()])
    with pytest.raises(ArtifactError, match="is of kind affine_map, not affine_maps"):
        AffineMaps.load(affine_map().save(tmp_path / "map"))
    folder = save_artifact(
        tmp_path / "odd", kind="affine_maps", config={"maps": [{}]}, tensors={"x.y": torch.ones(1)}, card=""
    )
    with pytest.raises(ArtifactError, match="is not a folder of whole affine maps"):
        AffineMaps.load(folder)
