"""The stages from files to a served model, each one call over the rooms: what jobs, cli and quickstart run."""
