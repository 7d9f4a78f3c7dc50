"""Many workers on many machines over one PostgreSQL: the reference host on Procrastinate."""
