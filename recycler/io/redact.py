"""Secrets never leave the environment: passwords in URLs and the values of secret variables are
shown as ***.
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote

_URL_PASSWORD = re.compile(r"(\w://[^\s:/@]*):[^\s/]*@")
_QUERY_PASSWORD = re.compile(
    r"([?&](?:password|passwd|sslpassword|secret|token)=)[^&\s'\"]*", re.IGNORECASE
)
_SECRET_NAME = re.compile(
    r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY|ACCOUNT_KEY|STORAGE_KEY|SAS_KEY|CONNECTION_STRING|\APGPASSWORD\Z"
)
SHORTEST = 6  # a shorter value would be found in innocent words


def redacted(text: str) -> str:
    """`text` without the passwords of URLs and without the value of any variable whose name says
    that it is a secret.
    """
    text = _QUERY_PASSWORD.sub(r"\1***", _URL_PASSWORD.sub(r"\1:***@", text))
    secrets = {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name.upper())
        and len(value) >= SHORTEST
        and not name.endswith(("_PATH", "_FILE", "_PARALLELISM"))
    }
    for secret in sorted(
        secrets | {quote(value, safe="") for value in secrets}, key=len, reverse=True
    ):
        text = text.replace(secret, "***")
    return text


def without_password(url: str) -> str:
    """The URL as it may be stored and shown."""
    bare = _URL_PASSWORD.sub(r"\1@", url)
    if not _QUERY_PASSWORD.search(bare):
        return bare
    place, _, query = bare.partition("?")
    kept = [part for part in query.split("&") if part and not _QUERY_PASSWORD.match(f"?{part}")]
    return f"{place}?{'&'.join(kept)}" if kept else place
