"""One job a file, each a function of a `Bench` that returns an `Outcome`."""
