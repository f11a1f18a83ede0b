"""Two runs with different settings start on one output at once: the dataset is that of one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.attempts import assert_clean, images_of
from tests.chaos.conftest import OTHER, References, Site

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


@pytest.fixture(params=["local_site", "site", "rclone_site"])
def any_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A disk, an S3 server, and one that ignores `If-None-Match`."""
    yield request.getfixturevalue(request.param)


@pytest.mark.parametrize("turn", range(3))
def test_of_two_runs_that_start_at_once_one_works(
    any_site: Site, references: References, turn: int
) -> None:
    output = any_site.new_output()
    attempts = [any_site.start(output, changes) for changes in ({}, OTHER)]
    errors = [attempt.wait() for attempt in attempts]
    assert None in errors, errors
    assert all(error is None or "lease" in error for error in errors), errors
    assert_clean(output)
    if errors == [None, None]:  # one after the other
        assert any_site.start(output).wait() is None
        assert_clean(output)
    elif errors[0] is not None:
        assert images_of(output) == references.other_images
        return
    assert images_of(output) == references.images


@pytest.mark.parametrize("folder", ["", "shards/", "plan/", "data/images/00000/", "stages/decode/"])
def test_folder_markers_of_other_programs_change_nothing(
    site: Site, references: References, folder: str
) -> None:
    import s3fs

    assert site.server is not None
    output = site.new_output()
    files = s3fs.S3FileSystem(
        key=site.server.access_key,
        secret=site.server.secret_key,
        endpoint_url=site.server.endpoint,
        skip_instance_cache=True,
    )
    if folder:
        assert site.start(output).wait() is None
    bucket, _, key = f"{output.removeprefix('s3://')}/{folder}".partition("/")
    files.call_s3("put_object", Bucket=bucket, Key=key, Body=b"")
    for _ in range(2):
        assert site.start(output).wait() is None
        assert_clean(output)
        assert images_of(output) == references.images
