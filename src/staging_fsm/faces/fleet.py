"""The command line at a fleet's database: what is different there from the embedded one."""

import importlib.util

from staging_fsm.core.errors import ConfigInvalidError, RunRefusedError
from staging_fsm.faces.session import Session
from staging_fsm.fleet.settings import load_fleet_settings


def is_fleet_session(session: Session) -> bool:
    """Say whether the session's database carries a fleet."""
    if session.store.engine.dialect.name != "postgresql":
        return False
    from staging_fsm.fleet.fence import is_fleet  # noqa: PLC0415  # the extra "postgres", not always there

    return is_fleet(session.store.engine, load_fleet_settings(session.variables).schema)


def refuse_fleet(session: Session, instead: str) -> None:
    """Raise RunRefusedError at a fleet's database: who works there must hold its fences."""
    if is_fleet_session(session):
        message = f"this database belongs to a fleet: use `staging-fsm {instead}`"
        raise RunRefusedError(message)


def require_fleet_engine(session: Session) -> None:
    """Raise unless a fleet can be had here: PostgreSQL, and the packages of the extra."""
    if session.store.engine.dialect.name != "postgresql":
        message = "a fleet needs PostgreSQL: --db or ORCH_DB_URL, as postgresql://user@host/name"
        raise ConfigInvalidError([message])
    if importlib.util.find_spec("procrastinate") is None:
        message = "a fleet needs the extra `fleet`: pip install 'staging-fsm[fleet]'"
        raise RunRefusedError(message)


def require_fleet(session: Session) -> None:
    """Raise unless the session's database carries a fleet."""
    require_fleet_engine(session)
    if not is_fleet_session(session):
        message = "this database carries no fleet yet: run `staging-fsm fleet-setup` once"
        raise RunRefusedError(message)
