"""Geometry: classes, the stripes of a data space, expansion and loss."""

from __future__ import annotations

import pytest

from dds.erasure.geometry import (
    ARCHIVE,
    ARCHIVE_SMALL,
    HOT,
    STANDARD,
    Geometry,
    class_geometry,
    custom_geometry,
    loss_probability,
    storage_expansion,
    stored_bytes,
    stripe_shapes,
)
from dds.primitives.errors import InputError
from dds.primitives.units import KIB, MIB
from dds.wire.segment import StripeShape

SMALLEST_CODED = 10 * 4 * KIB


def test_classes_have_the_specified_geometries() -> None:
    assert class_geometry("standard") == STANDARD == (10, 6)
    assert class_geometry("hot") == HOT == (10, 10)
    assert class_geometry("archive") == ARCHIVE == (16, 16)
    assert class_geometry("archive", 6, 6) == ARCHIVE_SMALL == (6, 6)
    assert class_geometry("archive", 16, 16) == ARCHIVE
    assert class_geometry("custom", 4, 2) == (4, 2)
    assert str(STANDARD) == "10+6"


def test_full_stripes_have_slots_of_one_mebibyte() -> None:
    assert stripe_shapes(STANDARD, 30 * MIB) == [StripeShape(10, 6, MIB, 10 * MIB)] * 3


def test_the_rest_shrinks_its_slots_rounded_up_to_64_bytes() -> None:
    assert stripe_shapes(STANDARD, 13 * MIB) == [StripeShape(10, 6, MIB, 10 * MIB), StripeShape(10, 6, 314_624, 3 * MIB)]
    assert stripe_shapes(STANDARD, 10 * MIB - 1) == [StripeShape(10, 6, MIB, 10 * MIB - 1)]
    assert stripe_shapes(STANDARD, SMALLEST_CODED) == [StripeShape(10, 6, 4096, SMALLEST_CODED)]
    assert stripe_shapes(STANDARD, SMALLEST_CODED + 1) == [StripeShape(10, 6, 4160, SMALLEST_CODED + 1)]


def test_little_data_becomes_copies_without_padding() -> None:
    assert stripe_shapes(STANDARD, SMALLEST_CODED - 1) == [StripeShape(1, 6, SMALLEST_CODED - 1, SMALLEST_CODED - 1)]
    assert stripe_shapes(STANDARD, 1) == [StripeShape(1, 6, 1, 1)]
    assert stripe_shapes(STANDARD, 10 * MIB + 5)[1] == StripeShape(1, 6, 5, 5)


def test_no_data_has_no_stripes() -> None:
    assert stripe_shapes(STANDARD, 0) == []


def test_a_class_of_copies_has_whole_slots_and_an_unpadded_rest() -> None:
    assert stripe_shapes(Geometry(1, 3), 2 * MIB + 9) == [
        StripeShape(1, 3, MIB, MIB),
        StripeShape(1, 3, MIB, MIB),
        StripeShape(1, 3, 9, 9),
    ]


@pytest.mark.parametrize("data_bytes", [SMALLEST_CODED, 65_537, MIB + 1, 3 * MIB, 10 * MIB - 1])
@pytest.mark.parametrize("geometry", [STANDARD, ARCHIVE_SMALL, Geometry(64, 64), Geometry(2, 1)])
def test_padding_is_less_than_64_bytes_a_slot(geometry: Geometry, data_bytes: int) -> None:
    for shape in stripe_shapes(geometry, data_bytes):
        assert 0 <= shape.k * shape.slot_bytes - shape.data_bytes < shape.k * 64


@pytest.mark.parametrize(("k", "m"), [(0, 6), (65, 6), (10, 0), (64, 65), (-1, 1), (10, -1)])
def test_custom_geometries_out_of_bounds_are_refused(k: int, m: int) -> None:
    with pytest.raises(InputError):
        custom_geometry(k, m)


@pytest.mark.parametrize(("k", "m"), [(1, 1), (64, 64), (1, 127), (64, 1)])
def test_custom_geometries_at_the_bounds_are_accepted(k: int, m: int) -> None:
    assert custom_geometry(k, m) == (k, m)


def test_classes_and_numbers_must_fit_together() -> None:
    for wrong in (
        ("fast", None, None),
        ("custom", None, 2),
        ("custom", 4, None),
        ("standard", 10, 6),
        ("archive", 10, 6),
        ("", None, None),
    ):
        with pytest.raises(InputError):
            class_geometry(*wrong)


def test_expansion_counts_what_nodes_really_keep() -> None:
    assert STANDARD.expansion == storage_expansion(STANDARD, 640 * MIB) == 1.6
    assert HOT.expansion == ARCHIVE.expansion == 2.0
    assert storage_expansion(STANDARD, 2048) == 7.0
    assert storage_expansion(STANDARD, 3 * MIB) == pytest.approx(1.6, rel=1e-3)
    assert stored_bytes(stripe_shapes(STANDARD, 3 * MIB)) == 16 * 314_624


@pytest.mark.parametrize(("node_loss", "published"), [(0.01, 1e-10), (0.05, 6e-6), (0.10, 5e-4)])
def test_loss_of_a_standard_stripe_is_as_published(node_loss: float, published: float) -> None:
    assert f"{loss_probability(STANDARD, node_loss):.0e}" == f"{published:.0e}"


def test_loss_is_certain_or_impossible_at_the_ends() -> None:
    assert loss_probability(STANDARD, 0.0) == 0.0
    assert loss_probability(STANDARD, 1.0) == 1.0
    assert loss_probability(HOT, 0.1) < loss_probability(STANDARD, 0.1)
