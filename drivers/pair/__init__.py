"""A policy together with what feeds it and what it moves: what is wrong between the two, named with its remedy."""
