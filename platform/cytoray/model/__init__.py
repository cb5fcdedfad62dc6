"""The transformer and the bundle that carries it; knows neither Ray nor object stores."""
