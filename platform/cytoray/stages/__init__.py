"""The stages from files to a served model, each a single call, as run by jobs, cli and quickstart."""
