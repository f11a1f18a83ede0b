"""What lease files say, those of earlier versions included."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rudalle_lib.dataset.layout import ShardRange, lease_path, parse
from rudalle_lib.dataset.lease_files import (
    SHARDS,
    Lease,
    list_leases,
    new_lease,
    newest,
    parse_lease,
    read_range_leases,
)
from rudalle_lib.storage.storage import Storage


def of_shards(number: int, first: int, last: int) -> Lease:
    return replace(
        new_lease(number, f"token {number}", 60), purpose=SHARDS, shards=ShardRange(first, last)
    )


def test_a_lease_is_read_as_it_was_written() -> None:
    for lease in (new_lease(3, "token", 60), of_shards(7, 10, 19)):
        assert parse_lease(lease.to_json()) == lease
        name = parse(lease.path)
        assert name is not None and (name.number, name.shards) == (lease.number, lease.shards)
    assert lease_path(7, ShardRange(10, 19)) == "lease/shards/00007.00010-00019.json"


def test_a_lease_of_an_earlier_version_is_of_a_whole_run() -> None:
    names = ("number", "token", "holder", "process", "since", "renewed", "seconds", "free", "term")
    data = json.loads(new_lease(3, "token", 60).to_json())
    lease = parse_lease(json.dumps({name: data[name] for name in names}).encode())
    assert lease is not None and lease.purpose == "run"
    assert (lease.shards, lease.ended_ranges) == (None, 0)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"1", b"\xff", b'{"shards": [1, 2, 3]}'])
def test_other_files_are_no_leases(content: bytes) -> None:
    assert parse_lease(content) is None


def test_of_leases_with_a_shard_in_common_the_last_is_valid(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for lease in (of_shards(1, 0, 9), of_shards(2, 10, 19), of_shards(3, 5, 9)):
        storage.write_bytes(lease.path, lease.to_json())
    storage.write_bytes("lease/shards/00004.00030-00039.json", b"torn")
    storage.write_bytes("lease/shards/note.txt", b"of a stranger")
    listing = list_leases(storage)
    assert listing.range_numbers == [1, 2, 3, 4] and listing.numbers == []
    assert [lease.number for lease in read_range_leases(storage, listing, 0)] == [2, 3]
    assert [lease.number for lease in read_range_leases(storage, listing, 2)] == [3]
    assert newest(storage, listing.numbers) is None
