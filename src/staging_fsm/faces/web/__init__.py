"""The staging runner as seen by people: `GET /queue` and pages, an ASGI app that only reads.

`create_app` makes an app for any ASGI host; `staging-fsm serve` runs it alone.
"""

from staging_fsm.faces.web.app import create_app
from staging_fsm.faces.web.guard import LOOPBACK_HOSTS
from staging_fsm.faces.web.source import Source

__all__ = ["LOOPBACK_HOSTS", "Source", "create_app"]
