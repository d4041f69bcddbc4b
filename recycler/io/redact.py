"""Redaction: passwords in URLs and the values of secret variables are shown as ***."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

_URL_PASSWORD = re.compile(r"(\w://[^\s:/@]*):[^\s/]*@")
_QUERY_PASSWORD = re.compile(
    r"([?&](?:password|passwd|sslpassword|secret|token)=)[^&\s'\"]*", re.IGNORECASE
)
_SECRET_NAME = re.compile(
    r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY|ACCOUNT_KEY|STORAGE_KEY|SAS_KEY"
    r"|CONNECTION_STRING|\APGPASSWORD\Z"
)
_NO_SECRET = ("_PATH", "_FILE", "_PARALLELISM")  # ends of names of variables
MIN_LENGTH = 6  # of a secret: a shorter one would be found in innocent words


def redacted(text: str) -> str:
    """`text` without the passwords of URLs and the values of secret variables.

    A variable is secret when its name says so.
    """
    text = _QUERY_PASSWORD.sub(r"\1***", _URL_PASSWORD.sub(r"\1:***@", text))
    secrets: set[str] = set()
    for name, value in os.environ.items():
        is_secret = _SECRET_NAME.search(name.upper()) and not name.endswith(_NO_SECRET)
        if is_secret and len(value) >= MIN_LENGTH:
            secrets |= {value, quote(value, safe="")}
    for secret in sorted(secrets, key=len, reverse=True):
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
