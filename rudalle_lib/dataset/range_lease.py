"""Leases of shards: any number of runs work on one output at once, each on shards of its own.

A run takes shards while it holds the lease of the output to plan (`dataset.lease`), so no two take
them at the same time, and no whole run starts in between. It creates
`lease/shards/<number>.<first>-<last>.json`, makes sure that it still holds the lease of the output,
and frees that. From then on only its own lease counts, which it renews and frees like any other.

A lease that was not renewed in time is taken over with a higher term, as that of an output is. The
earlier file stays, because its holder may be alive and write it again; the higher number outbids
it. Leases end together when the lease of the output is taken for a whole run or for the report.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

from rudalle_lib.dataset.layout import ShardRange
from rudalle_lib.dataset.lease import HeldError, Holding, check, is_over, next_term
from rudalle_lib.dataset.lease_files import (
    SHARDS,
    Lease,
    list_leases,
    new_lease,
    read_range_leases,
)
from rudalle_lib.errors import ConfigError, LeaseLostError
from rudalle_lib.storage.guards import guarding
from rudalle_lib.storage.probes import current_time
from rudalle_lib.storage.storage import Storage

AUTO = "auto"
"""Takes shards that nobody works on, again and again."""

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


def parse_shards(text: str) -> ShardRange | None:
    """The shards that a user names, such as `0-99` or `7`; None for `auto`.

    Raises:
        ConfigError: it is something else.
    """
    match = _RANGE.fullmatch(text.strip())
    if text.strip() == AUTO:
        return None
    first = int(match[1]) if match else 0
    last = int(match[2] or first) if match else -1
    if last < first:
        raise ConfigError(
            f"The shards {text[:50]!r} are neither a number, such as 7, nor two with the lower one "
            f"first, such as 0-99, nor {AUTO}."
        )
    return ShardRange(first, last)


def check_planned(wanted: ShardRange | None, count: int) -> None:
    """Check that some of the shards that a user names are among the `count` planned ones.

    Raises:
        ConfigError: none is.
    """
    if wanted is not None and wanted.first >= count:
        one = wanted.first == wanted.last
        found = f"{ShardRange(0, count - 1).named}, counted from 0" if count else "no shards"
        raise ConfigError(
            f"There {'is' if one else 'are'} no {wanted.named}: the plan has {found}."
        )


@dataclass(frozen=True)
class Workers:
    """Who works on shards of an output, seen while nobody can begin to.

    Attributes:
        storage: The output.
        planner: The lease of the output, held to plan.
        leases: All valid leases of shards, held or not.
        busy: The shards of those that are held.
    """

    storage: Storage
    planner: Holding
    leases: Sequence[Lease]
    busy: Sequence[ShardRange]

    def take(self, shards: ShardRange, token: str, seconds: float, settings: str) -> Lease:
        """Create a lease of shards.

        Args:
            shards: The shards.
            token: The token of all leases of this run.
            seconds: Duration of the lease.
            settings: Digest of everything that images depend on; the same for all who work.

        Raises:
            HeldError: Another run works on some of the shards, or with other settings.
            LeaseLostError: The lease of the output was lost meanwhile.
            StorageError: The lease cannot be written.
        """
        self._check_settings(settings)
        earlier = [lease for lease in self.leases if _of(lease).overlaps(shards)]
        terms = [_term_after(self.storage, lease, shards) for lease in earlier]
        lease = self._create(
            replace(
                new_lease(0, token, seconds),
                purpose=SHARDS,
                shards=shards,
                settings=settings,
                term=max([self.planner.mark.term, *terms]),
                took_over=any(term > one.term for term, one in zip(terms, earlier, strict=True)),
            )
        )
        try:
            check(self.storage, self.planner.mark)
        except LeaseLostError:  # it was created after another run could take these shards
            with guarding(self.storage.url(), lambda: None):
                self.storage.delete(lease.path)
            raise
        for one in self.leases:
            if is_over(one) and not one.took_over:  # the planner has its term
                self.storage.delete(one.path)
        return lease

    def _check_settings(self, settings: str) -> None:
        for lease in self.leases:
            if _of(lease) in self.busy and lease.settings != settings:
                raise HeldError(
                    f"{lease.holder} works on {_of(lease).named} of "
                    f"{self.storage.public_path()} with other settings or weights; give all runs "
                    "that work on an output the same configuration.",
                    lease,
                )

    def _create(self, lease: Lease) -> Lease:
        """Create a file under the next free number; a stalled run may just have used one."""
        numbers = list_leases(self.storage).range_numbers
        for number in count(1 + max([self.planner.lease.ended_ranges, *numbers])):
            numbered = replace(lease, number=number)
            if self.storage.create(numbered.path, numbered.to_json()):
                return numbered
        raise AssertionError("unreachable")


def see_workers(storage: Storage, planner: Holding) -> Workers:
    """Who works on shards of an output.

    Args:
        storage: The output.
        planner: The lease of the output, held to plan.
    """
    leases = read_range_leases(storage, list_leases(storage), planner.lease.ended_ranges)
    now = current_time(storage) if leases else 0.0
    busy = [_of(lease) for lease in leases if _is_held(storage, lease, now)]
    return Workers(storage, planner, leases, busy)


def _is_held(storage: Storage, lease: Lease, now: float) -> bool:
    try:
        next_term(storage, lease, now)
    except HeldError:
        return True
    return False


def _term_after(storage: Storage, lease: Lease, shards: ShardRange) -> int:
    try:
        return next_term(storage, lease)
    except HeldError as error:
        raise HeldError(
            f"Shards {shards} and {lease.shards} overlap. {error} Or choose other shards.", lease
        ) from None


def _of(lease: Lease) -> ShardRange:
    """The shards of a lease of shards."""
    assert lease.shards is not None
    return lease.shards
