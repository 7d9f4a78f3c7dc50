"""Options that several commands share."""

import click

db_option = click.option(
    "--db", metavar="URL", envvar="ORCH_DB_URL", help="Database; default: SQLite, state folder."
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON value on stdout.")
