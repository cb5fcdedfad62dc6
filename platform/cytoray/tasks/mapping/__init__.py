"""Reference mapping: new cells among labelled ones, with votes of neighbours, doubts, and a place on a frozen map."""
