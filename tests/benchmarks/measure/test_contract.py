"""Scores of different measurements never share a table."""

from __future__ import annotations

import copy

import pytest

from benchmarks.measure.contract import check_contracts, table_contract
from benchmarks.metrics import protocols


def contract(seed: int, signature: str) -> dict:
    return {
        "scale": "tiny",
        "data": "procedural",
        "signature": signature,
        "git_commit": "3fa91c2",
        "clips": {"n": 128, "sha256": f"clips of seed {seed}"},
        "metrics": protocols(["psd", "swd"]),
    }


@pytest.fixture
def contracts() -> dict[str, dict[int, dict]]:
    return {arm: {seed: contract(seed, f"{arm}{seed}") for seed in (0, 1)} for arm in ("baseline", "full")}


def test_signatures_commits_and_clips_of_other_seeds_may_differ(contracts: dict[str, dict[int, dict]]):
    contracts["full"][1]["git_commit"] = "0000000"
    check_contracts(contracts)


def test_a_row_may_lack_a_metric(contracts: dict[str, dict[int, dict]]):
    del contracts["full"][0]["metrics"]["swd"]
    check_contracts(contracts)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("scale",), "2k", "scale is 'tiny' in 'baseline' .* and '2k' in 'full'"),
        (("data",), "shards", "data is 'procedural'"),
        (("clips", "sha256"), "other", r"clips\.sha256"),
        (("metrics", "psd", "protocol"), "psd/2", r"metrics\.psd\.protocol is 'psd/1'"),
        (("metrics", "swd", "settings", "seed"), 1, r"metrics\.swd\.settings\.seed is 0"),
    ],
)
def test_a_mismatch_raises_and_names_key_and_rows(
    contracts: dict[str, dict[int, dict]], path: tuple[str, ...], value: object, named: str
):
    where = contracts["full"][1] = copy.deepcopy(contracts["full"][1])
    for key in path[:-1]:
        where = where[key]
    where[path[-1]] = value
    with pytest.raises(ValueError, match=named):
        check_contracts(contracts)


def test_a_key_that_one_row_lacks_is_a_mismatch(contracts: dict[str, dict[int, dict]]):
    del contracts["baseline"][0]["data"]
    with pytest.raises(ValueError, match="data is None in 'baseline'"):
        check_contracts(contracts)


def test_the_table_has_one_value_where_rows_agree_and_a_list_where_they_may_differ(
    contracts: dict[str, dict[int, dict]],
):
    merged = table_contract(contracts)
    assert merged["scale"] == "tiny"
    assert merged["signature"] == ["baseline0", "baseline1", "full0", "full1"]
    assert [clips["sha256"] for clips in merged["clips"]] == ["clips of seed 0", "clips of seed 1"]
    assert merged["metrics"] == protocols(["psd", "swd"])
