"""Answers: the predictor behind HTTP, offline embedding and the client."""
