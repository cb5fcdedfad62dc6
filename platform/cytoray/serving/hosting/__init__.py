"""Several models in one service: which of them a request asks, and what each of them is."""
