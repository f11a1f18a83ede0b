"""Which rows of a prompt table are new, which are planned already, and which are duplicates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import pyarrow as pa

from rudalle_lib.digests import digest_of
from rudalle_lib.prompts.rows import STAGE, PromptBlock, content_digest, prompts_of, sources_of
from rudalle_lib.schema.records import Prompt, RejectRecord, reject

CHOSEN_SIZE = "shard_size"
"""Metadata key of a plan file: prompts per shard, if `prompts.shard_size` is auto. Later prompts of
the output are divided in the same way."""


class Renumbered(NamedTuple):
    """What the row of a planned prompt asks for now: a number of images, and its new digest."""

    images: int | None
    content: str


class KnownPrompts:
    """All prompts seen so far: tells new prompts from planned ones and from duplicates."""

    def __init__(self) -> None:
        self._contents: dict[str, str] = {}  # digest of text and overrides by prompt id
        self._unseen: set[str] = set()  # ids planned by earlier runs, not yet read in this one
        self._changed: dict[str, str] = {}  # new digests, by the id in the table
        self._capitals: set[str] = set()  # ids that have capital letters, in small ones
        self._images: dict[str, int] = {}  # planned numbers of images of the rows that have one
        self.shard_size: int | None = None
        """Prompts per shard, if that was chosen for the plan."""
        self.renumbered: dict[str, Renumbered] = {}
        """Planned prompts whose rows ask for another number of images now, by prompt id."""

    @property
    def unseen(self) -> int:
        """The number of prompts of earlier runs that have not been read in this one."""
        return len(self._unseen)

    def add_planned(self, table: pa.Table) -> None:
        """Add the prompts of a plan file."""
        size = (table.schema.metadata or {}).get(CHOSEN_SIZE.encode())
        if size is not None and self.shard_size is None:
            self.shard_size = int(size)
        # One object for both if they are equal: half the memory for a million ids.
        contents = {i: i if i == content else content for i, content in _ids_and_contents(table)}
        images = zip(contents, table.column("images").to_pylist(), strict=True)
        self._images.update((i, number) for i, number in images if number is not None)
        self._contents.update(contents)
        self._unseen.update(contents)
        for prompt_id in contents:
            self._note_capitals(prompt_id)

    def select_new(self, block: PromptBlock) -> tuple[pa.Table, list[RejectRecord]]:
        """The new prompts of a block, and a reject for each duplicate."""
        new: list[int] = []
        renamed: dict[int, str] = {}
        duplicates: list[RejectRecord] = []
        rows = cache(lambda: prompts_of(block.prompts))  # needed only if a row has changed
        for position, (prompt_id, content) in enumerate(_ids_and_contents(block.prompts)):
            before = self._contents.get(prompt_id)
            if self._is_renumbered(prompt_id, content, partial(_row, rows, position)):
                self._unseen.remove(prompt_id)
                self._contents[prompt_id] = content
                continue
            if prompt_id in self._unseen and before != content and prompt_id not in self._changed:
                self._changed[prompt_id] = content
                prompt_id = renamed[position] = changed_id(prompt_id, content)
                before = self._contents.get(prompt_id)
                if before is None and self._differs_in_case(prompt_id):
                    prompt_id = renamed[position] = recased_id(prompt_id, content)
                    before = self._contents.get(prompt_id)
            elif prompt_id in self._changed:
                cause = "has an earlier row" if self._changed[prompt_id] != content else None
                duplicates.append(_duplicate(block, position, cause))
                continue
            elif before is None and self._differs_in_case(prompt_id):
                self._changed[prompt_id] = content
                prompt_id = renamed[position] = recased_id(prompt_id, content)
                before = self._contents.get(prompt_id)
            if before is None:
                self._note_capitals(prompt_id)
                self._contents[prompt_id] = prompt_id if prompt_id == content else content
                new.append(position)
            elif prompt_id in self._unseen:
                self._unseen.remove(prompt_id)
                if before != content:
                    duplicates.append(_duplicate(block, position, "was planned before"))
            else:
                cause = "has an earlier row" if before != content else None
                duplicates.append(_duplicate(block, position, cause))
        prompts = _rename(block.prompts, renamed)
        if len(new) < prompts.num_rows:
            prompts = prompts.take(pa.array(new, pa.int64()))
        return prompts, duplicates

    def _is_renumbered(self, prompt_id: str, content: str, read: Callable[[], Prompt]) -> bool:
        """Whether a row differs from a planned prompt only in its number of images; notes it."""
        before = self._contents.get(prompt_id)
        if prompt_id not in self._unseen or before == content or prompt_id in self._changed:
            return False
        if changed_id(prompt_id, content) in self._contents:  # so did earlier versions plan it
            return False
        prompt = read()
        given = prompt.overrides.given()
        images = given.pop("images", None)
        if content_digest(prompt.text, _with_images(given, images)) != content:
            return False
        if content_digest(prompt.text, _with_images(given, self._images.get(prompt_id))) != before:
            return False
        self.renumbered[prompt_id] = Renumbered(prompt.overrides.images, content)
        return True

    def _note_capitals(self, prompt_id: str) -> None:
        small = prompt_id.lower()
        if small != prompt_id:
            self._capitals.add(small)

    def _differs_in_case(self, prompt_id: str) -> bool:
        """Whether a known id differs from a new one only in capital letters.

        Many file systems take them for the same name, so one image would overwrite the other.
        """
        small = prompt_id.lower()
        return small in self._capitals or (small != prompt_id and small in self._contents)


def recased_id(prompt_id: str, content: str) -> str:
    """The id of a row whose own id differs from an earlier one only in capital letters."""
    return changed_id(prompt_id, digest_of([prompt_id, content])[: len(content)])


def changed_id(prompt_id: str, content: str) -> str:
    """The id of a row whose own id was planned with other content: at most 64 characters."""
    return f"{prompt_id[: 63 - len(content)]}.{content}"


def with_numbers(plan: pa.Table, renumbered: Mapping[str, Renumbered]) -> pa.Table:
    """A plan table in which prompts have other numbers of images, and the digests of them."""
    for name in Renumbered._fields:
        place, ids = plan.schema.get_field_index(name), plan.column("prompt_id").to_pylist()
        values = [
            getattr(renumbered[prompt_id], name) if prompt_id in renumbered else value
            for prompt_id, value in zip(ids, plan.column(name).to_pylist(), strict=True)
        ]
        field = plan.schema.field(place)
        plan = plan.set_column(place, field, pa.array(values, field.type))
    return plan


def _row(rows: Callable[[], list[Prompt]], position: int) -> Prompt:
    return rows()[position]


def _with_images(
    given: Mapping[str, int | float | str], images: Any
) -> dict[str, int | float | str]:
    return {**given} if images is None else {**given, "images": images}


def _rename(prompts: pa.Table, ids: Mapping[int, str]) -> pa.Table:
    if not ids:
        return prompts
    column = prompts.column("prompt_id").to_pylist()
    names = [ids.get(position, prompt_id) for position, prompt_id in enumerate(column)]
    place = prompts.schema.get_field_index("prompt_id")
    return prompts.set_column(place, prompts.schema.field(place), pa.array(names, pa.string()))


def _ids_and_contents(table: pa.Table) -> Iterator[tuple[str, str]]:
    ids = table.column("prompt_id").to_pylist()
    contents = table.column("content").to_pylist()
    return zip(ids, contents, strict=True)


def _duplicate(block: PromptBlock, position: int, cause: str | None) -> RejectRecord:
    prompt_id = block.prompts.column("prompt_id")[position].as_py()
    what = (
        "duplicate of an earlier row, which is kept"
        if cause is None
        else f"the id {prompt_id} {cause} with different text or overrides, which is kept"
    )
    return reject(
        "duplicate",
        what,
        stage=STAGE,
        prompt_id=prompt_id,
        text=block.prompts.column("text")[position].as_py(),
        row=sources_of(block.prompts.slice(position, 1))[0],
    )
