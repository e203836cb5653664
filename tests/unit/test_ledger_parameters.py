"""The specification's table of parameters is the code's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dds.ledger.params import Params, devnet_params

SPEC = Path(__file__).parents[2] / "docs" / "spec" / "ledger.md"
ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<default>[0-9,]+) \| .* \| .* \| (?P<devnet>.*) \|$", re.MULTILINE)
ROWS = {row["name"]: row for row in ROW.finditer(SPEC.read_text())}


def test_every_parameter_is_specified_in_the_order_of_the_code() -> None:
    assert tuple(ROWS) == Params.__struct_fields__


@pytest.mark.parametrize("name", Params.__struct_fields__)
def test_a_parameters_default_and_devnet_value_are_as_specified(name: str) -> None:
    default, devnet = int(ROWS[name]["default"].replace(",", "")), ROWS[name]["devnet"].strip()
    assert getattr(Params(), name) == default
    if name != "genesis_ms":
        assert getattr(devnet_params(0), name) == (int(devnet.replace(",", "")) if devnet else default)
