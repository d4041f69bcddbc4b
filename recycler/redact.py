"""Secrets never leave the environment: passwords in URLs and the values of secret variables are shown as ***."""

from __future__ import annotations

import os
import re

_URL_PASSWORD = re.compile(r"(\w://[^\s:/@]*):[^\s/]*@")
_SECRET_NAME = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY|\APGPASSWORD\Z")
SHORTEST = 6  # a shorter value would be found in innocent words


def redacted(text: str) -> str:
    """`text` without the passwords of URLs and without the value of any variable whose name says that it is a secret."""
    text = _URL_PASSWORD.sub(r"\1:***@", text)
    secrets = {value for name, value in os.environ.items() if _SECRET_NAME.search(name.upper()) and len(value) >= SHORTEST and not name.endswith(("_PATH", "_FILE", "_PARALLELISM"))}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def without_password(url: str) -> str:
    """The URL as it may be stored and shown."""
    return _URL_PASSWORD.sub(r"\1@", url)
