"""Answers: the endpoints of the tasks behind HTTP, offline embedding and the client."""
