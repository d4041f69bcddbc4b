"""The service: a folder of runs over HTTP.

`create_app(root, token=...)` is the whole door; nothing is decided here.
"""

from recycler.service.app import create_app

__all__ = ["create_app"]
