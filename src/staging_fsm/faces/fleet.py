"""The command line at a fleet's database: what is different there from the embedded one."""

from typing import TYPE_CHECKING

from staging_fsm.core.errors import ConfigInvalidError, RefusedError
from staging_fsm.faces.extras import require_extra
from staging_fsm.faces.session import Session
from staging_fsm.fleet.settings import load_fleet_settings

if TYPE_CHECKING:
    from staging_fsm.fleet.deliveries import Deliveries
    from staging_fsm.fleet.fleet import Fleet


def is_fleet_session(session: Session) -> bool:
    """Say whether the session's database carries a fleet."""
    if session.store.engine.dialect.name != "postgresql":
        return False
    from staging_fsm.fleet.fence import is_fleet  # noqa: PLC0415  # the extra "postgres", not always there

    return is_fleet(session.store.engine, load_fleet_settings(session.variables).schema)


def refuse_fleet(session: Session, instead: str) -> None:
    """Raise RefusedError at a fleet's database: who works there must hold its fences."""
    if is_fleet_session(session):
        message = f"this database belongs to a fleet: use `staging-fsm {instead}`"
        raise RefusedError(message)


def require_fleet(session: Session) -> None:
    """Raise RefusedError unless the session's database carries a fleet."""
    if not is_fleet_session(session):
        message = "this database carries no fleet yet: run `staging-fsm fleet-setup` once"
        raise RefusedError(message)


def open_fleet(session: Session) -> "Fleet":
    """Return this machine's part of the fleet that the session's database carries, or may carry.

    Raises ConfigInvalidError where it is no PostgreSQL, and ExtraMissingError.
    """
    if session.store.engine.dialect.name != "postgresql":
        message = "a fleet needs PostgreSQL: --db or ORCH_DB_URL, as postgresql://user@host/name"
        raise ConfigInvalidError([message])
    require_extra("fleet")
    from staging_fsm.fleet import worker  # noqa: PLC0415  # the extra "fleet"

    return worker.open_fleet(session.store.engine, session.state, session.variables)


def refuse_other_papers(session: Session) -> None:
    """Raise RefusedError where this machine would stage another branch than the fleet's others.

    Neither it nor its state folder has to be one of the fleet's for that.
    """
    papers = load_fleet_settings(session.variables).papers
    _deliveries(session).refuse_other_papers(session.store.engine, papers)


def check_shared_folder(session: Session) -> None:
    """Raise PreparationError where this machine has not the fleet's shared folder, if there is one.

    Jobs wait for it; a worker starts without.
    """
    from staging_fsm.fleet.publisher import SharedFolder  # noqa: PLC0415  # the extra "fleet"

    shared = load_fleet_settings(session.variables).shared_dir
    if shared is not None:
        noted = _deliveries(session).noted(session.store.engine)
        SharedFolder(shared, None if noted is None else noted.mark).check()


def _deliveries(session: Session) -> "Deliveries":
    from staging_fsm.fleet.deliveries import Deliveries  # noqa: PLC0415  # the extra "fleet"
    from staging_fsm.fleet.fence import Server  # noqa: PLC0415  # the extra "fleet"

    schema = load_fleet_settings(session.variables).schema
    return Deliveries(Server.behind(session.store.engine, schema))
