"""`python -m staging_fsm.faces` is `staging-fsm`, where its script is not on the PATH."""

from staging_fsm.faces.cli import main

if __name__ == "__main__":
    main(prog_name="staging-fsm")
