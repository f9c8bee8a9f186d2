"""A secret that stands in a URL or a command is refused, and isn't repeated in the error."""

import pytest

from data.errors import UserError
from data.remote.credentials import refuse_secrets

SHOWN = (
    "https://me:S3CRET@host/web",
    "https://S3CRET@host/web",
    "https://host/web?X-Signature=S3CRET",
    "https://host/web?auth=S3CRET",
    "pipe:curl -H 'Authorization: Bearer S3CRET' https://host/{file}",
    "pipe:curl -H 'authorization: S3CRET' https://host/{file}",
    "pipe:curl -u me:S3CRET https://host/{file}",
    "pipe:curl --user=me:S3CRET https://host/{file}",
)
NAMED = (
    "https://host/web?page=2",
    "https://me:${PASSWORD}@host/web",
    "https://${TOKEN}@host/web",
    "https://host/web?auth=${TOKEN}",
    "sftp://me@host/web",
    "s3://bucket/web",
    "pipe:curl -H 'Authorization: Bearer ${TOKEN}' https://host/{file}",
    "pipe:curl -u me:${PASSWORD} https://host/{file}",
    "pipe:ssh -u host cat /data/{file}",
)


@pytest.mark.parametrize("url", SHOWN)
def test_a_secret_that_shows_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UserError, match="stands in the URL") as caught:
        refuse_secrets(url)
    assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize("url", NAMED)
def test_what_shows_no_secret_passes(url: str) -> None:
    refuse_secrets(url)
