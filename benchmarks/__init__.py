"""What staging_fsm costs, measured: `make bench`, and fleets, simulated: `make scaling`."""
