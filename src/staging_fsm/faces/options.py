"""Options that several commands share."""

import click


def _address(_context: click.Context, _option: click.Parameter, text: str | None) -> str | None:
    """Return an address without the blanks around it, as every setting is read; None for blanks."""
    return (text or "").strip() or None


db_option = click.option(
    "--db",
    metavar="URL",
    envvar="ORCH_DB_URL",
    callback=_address,
    help="Database; default: SQLite, state folder.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout.")
